"""A folder's name is taken literally, whatever characters it has."""

import pytest
from etils import epath

import clip_jax.storage  # noqa: F401


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "{x}", "[!a]", "plain"])
def test_a_glob_finds_the_files_of_a_folder_of_any_name(tmp_path, name):
    folder = epath.Path(tmp_path) / name
    folder.mkdir()
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "part_9").write_text("")
    (folder / "part_1").write_text("")
    (folder / "other").write_text("")
    assert [path.name for path in folder.glob("part_*")] == ["part_1"]
    assert next(iter(folder.glob("part_*"))).parent == folder
