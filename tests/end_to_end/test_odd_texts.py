"""Texts that are no text and names that are no UTF-8 go through every command to its end."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import tokenizers as hf
from PIL import Image

from clip_jax.cli.main import main

BROKEN = "picture number 5 \ud83d"  # half of a pair of surrogates, as JavaScript cuts texts off


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def pairs(folder):
    lines = []
    for number in range(8):
        (folder / f"{number}.png").write_bytes(picture(number))
        text = BROKEN if number == 5 else f"picture number {number}"
        lines.append(json.dumps({"image": f"{number}.png", "caption": text}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return f"pairs:{folder / 'list.jsonl'}"


def latin1(folder):
    with tarfile.open(folder / "0.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        for number in range(8):
            for end, data in (("png", picture(number)), ("txt", b"a picture")):
                info = tarfile.TarInfo(f"caf\xe9{number}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"tar:{folder / '0.tar'}"


def surrogate_paths(folder):
    """A file name that is no UTF-8, as older systems wrote them, in class folders."""
    for name in ("cat", "dog"):
        (folder / "set" / name).mkdir(parents=True)
        for number in range(4):
            path = os.fsencode(folder / "set" / name) + b"/caf\xe9" + str(number).encode()
            with open(path + b".png", "wb") as file:
                file.write(picture(number))
    return f"folder:{folder / 'set'}"


@pytest.mark.parametrize("write", [pairs, latin1, surrogate_paths])
def test_stats_preview_convert_eval_and_training_end_with_0(
    write, tmp_path, train, finished_run, capsys
):
    source = write(tmp_path)
    assert main(["data", "stats", source]) == 0
    assert main(["data", "preview", source, "--out", str(tmp_path / "p.html")]) == 0
    assert main(["data", "convert", source, str(tmp_path / "records")]) == 0
    assert "8 samples" in capsys.readouterr().out
    (tmp_path / "p.html").read_text("utf-8")
    assert main(["eval", str(finished_run), "--source", source]) == 0
    small = ["--data.batch-size", "8", "--evaluation.batch-size", "8", "--steps", "2",
             "--data.eval-source", source, "--evaluation.every-steps", "2"]  # fmt: skip
    assert train(tmp_path / "run", *small, source=source) == 0
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "evaluation is of step 2" in report


@pytest.mark.parametrize("kind", ["clip", "huggingface"])
def test_other_tokenizers_train_on_them(kind, tmp_path, train):
    arguments = ["--data.batch-size", "8", "--steps", "2", "--tokenizer.kind", kind]
    if kind != "clip":
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
        pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
        made = hf.Tokenizer(hf.models.Unigram(pieces, unk_id=2))
        made.pre_tokenizer = hf.pre_tokenizers.Metaspace()
        made.post_processor = hf.processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
        made.save(str(tmp_path / "tokenizer.json"))
        arguments += ["--tokenizer.path", str(tmp_path / "tokenizer.json")]
    assert train(tmp_path / "run", *arguments, source=pairs(tmp_path)) == 0
