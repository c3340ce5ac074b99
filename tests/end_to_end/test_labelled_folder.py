"""`clip-jax eval` on class folders, as ImageNet's validation set comes."""

import json

from PIL import Image

from clip_jax.cli.main import main

COLORS = {"n01": (220, 30, 30), "n02": (30, 200, 30), "n03": (30, 30, 220)}


def test_class_folders_give_zero_shot_accuracy(finished_run, tmp_path, capsys):
    for folder, color in COLORS.items():
        (tmp_path / "val" / folder).mkdir(parents=True)
        for number in range(4):
            path = tmp_path / "val" / folder / f"{number}.JPEG"
            Image.new("RGB", (40, 30 + number), color).save(path)
    names = "".join(
        f"n0{n}\ta {color} square\n" for n, color in enumerate(("red", "green", "blue"), 1)
    )
    (tmp_path / "val" / "classnames.txt").write_text(names)
    figures = tmp_path / "figures.json"
    source = f"folder:{tmp_path / 'val'}"
    assert main(["eval", str(finished_run), "--source", source, "--json-out", str(figures)]) == 0
    shown = capsys.readouterr().out
    assert "zero_shot_top1" in shown and "zero_shot_top5" in shown
    figures = json.loads(figures.read_text())
    assert figures["eval/samples"] == 12
    assert figures["eval/zero_shot_top5"] == 1 and 0 <= figures["eval/zero_shot_top1"] <= 1
    assert figures["eval/zero_shot_chance"] == 1 / 3
    assert "eval/text_to_image_recall_at_1" not in figures  # captions are names of classes
