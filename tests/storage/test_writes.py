"""A file is there in full or not at all."""

import pytest

from clip_jax.storage import atomic_write
from clip_jax.storage.names import file_name


@pytest.mark.parametrize("content", ["na\u00efve \u2603", "na\u00efve \u2603".encode()])
def test_text_and_bytes_are_written_into_a_folder_that_is_made(content, tmp_path):
    atomic_write(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_text(encoding="utf-8") == "na\u00efve \u2603"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    atomic_write(tmp_path / "file", "old")
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        atomic_write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_else_is_left_in_the_folder(tmp_path):
    atomic_write(tmp_path / "file", "once")
    atomic_write(tmp_path / "file", "twice")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_text_makes_a_name_that_a_file_can_have_and_two_long_ones_make_two(tmp_path):
    long = [f"task{k}_" + "\u732b" * 90 for k in (1, 2)]
    names = [file_name(text) for text in ("a/b\\c\0", *long, "\udcff" * 300)]
    assert names[0] == "a_b_c_"
    assert names[1] != names[2] and names[1].endswith("\u732b" * 50)
    for name in names:
        (tmp_path / f"{name}.json").write_text("")
