"""A file that is no weights, or lies about them, is one line that names it and exit code 2."""

import json
import re

import pytest

from clip_jax.cli.main import main
from clip_jax.weights.export import export
from clip_jax.weights.load import load_released

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 605247071\n"
PAGE = b"<!DOCTYPE html><html><body>Not found</body></html>"
FOREIGN = {
    "lfs": (POINTER, "Git LFS pointer; `git lfs pull`"),
    "page": (PAGE, "HTML or XML page"),
    "upper page": (b"\n  <HTML><head></head></HTML>", "HTML or XML page"),
    "empty": (b"", "the file is empty"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "compressed with gzip"),
    "text": (b"hello, these are my weights", "no .safetensors, .pt, .bin or .npz"),
    "zeros": (bytes(4096), "no .safetensors, .pt, .bin or .npz"),
    "zip": (b"PK\x03\x04" + bytes(64), "the end of its zip archive is missing"),
    "pickle": (b"\x80\x02}q\x00.", "not one that torch wrote"),
    "half a pickle": (b"\x80\x02}q\x00", "was not read|is damaged"),
    "index": (b'{"weight_map": 3}', "no index of files"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("ending", [".bin", ".pt", ".ckpt"])
def test_foreign_bytes_are_named(name, ending, tmp_path):
    content, words = FOREIGN[name]
    file = tmp_path / f"a{ending}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\{ending} .*({words})") as caught:
        load_released(file)
    assert "weights_only" not in str(caught.value)


def broken(directory, name, change):
    file = directory / name
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content)))


def at(*path, value):
    """Sets a value inside of a JSON file."""

    def change(content):
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return content

    return change


CONFIG, PIXELS = "open_clip_config.json", "preprocessor_config.json"
WRONG = {
    "a list for a config": ("open_clip", CONFIG, lambda content: [content], "object"),
    "no model": ("open_clip", CONFIG, at("model_cfg", value=[1]), "model_cfg"),
    "null for a model": ("open_clip", CONFIG, at("model_cfg", value=None), "embed_dim"),
    "no embed_dim": ("open_clip", CONFIG, at("model_cfg", "embed_dim", value=None), "embed_dim"),
    "text for a number": ("open_clip", CONFIG, at("model_cfg", "embed_dim", value="8"), "embed_dim"),
    "a number for a mean": ("open_clip", CONFIG, at("preprocess_cfg", "mean", value=0.5), "mean"),
    "std 0": ("open_clip", CONFIG, at("preprocess_cfg", "std", value=[0, 1, 1]), "std"),
    "a list for a fill": (
        "open_clip", CONFIG, at("preprocess_cfg", "fill_color", value=[1, 2, 3]), "from 0 to 255",
    ),
    "a number for image_mean": ("huggingface", PIXELS, at("image_mean", value=0.5), "image_mean"),
    "another crop": ("huggingface", PIXELS, at("crop_size", value=8), "crop_size"),
    "image_size of two": (
        "huggingface", "config.json", at("vision_config", "image_size", value=[16, 8]), "image_size",
    ),
    "four channels": (
        "huggingface", "config.json", at("vision_config", "num_channels", value=4), "num_channels",
    ),
    "hidden_act": (
        "huggingface", "config.json", at("text_config", "hidden_act", value="relu"), "hidden_act",
    ),
    "another kind": ("huggingface", "config.json", at("model_type", value="blip"), "blip"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_is_one_line_and_exit_code_2(name, configs, variables, tmp_path, capsys):
    library, file, change, word = WRONG[name]
    export(tmp_path / "a", configs["plain"], variables["plain"], to=library)
    broken(tmp_path / "a", file, change)
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("clip-jax: ")
    assert len(shown.splitlines()) == 1
    assert len(shown) < 500
    assert file in shown
    assert word in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("library", "file", "change"),
    [
        ("open_clip", CONFIG, at("preprocess_cfg", value=None)),
        ("huggingface", PIXELS, at("image_mean", value=None)),
    ],
)
def test_null_is_as_if_the_key_were_not_there(library, file, change, configs, variables, tmp_path):
    export(tmp_path / "a", configs["plain"], variables["plain"], to=library)
    broken(tmp_path / "a", file, change)
    assert load_released(tmp_path / "a").preprocess.config.mean == configs["plain"].preprocess.mean


def test_float8_is_named_in_safetensors_too(configs, variables, tmp_path, capsys):
    export(tmp_path / "a", configs["plain"], variables["plain"], to="open_clip")
    file = tmp_path / "a" / "open_clip_model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    start, end = header["visual.proj"]["data_offsets"]
    rows, columns = header["visual.proj"]["shape"]
    header["visual.proj"] |= {"dtype": "F8_E4M3", "shape": [rows, columns]}
    header["visual.proj"]["data_offsets"] = [start, start + rows * columns]
    moved = end - start - rows * columns
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [place - moved for place in entry["data_offsets"]]
    body = data[8 + length :]
    body = body[: start + rows * columns] + body[end:]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r'"visual\.proj" is of type float8_e4m3fn, which is not read: save', line)


@pytest.mark.parametrize("content", [POINTER, PAGE, b"\xff\xfe{\x00"])
@pytest.mark.parametrize("name", [CONFIG, "open_clip_model.safetensors"])
def test_foreign_bytes_for_any_file_are_one_line(
    name, content, configs, variables, tmp_path, capsys
):
    export(tmp_path / "a", configs["plain"], variables["plain"], to="open_clip")
    (tmp_path / "a" / name).write_bytes(content)
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
