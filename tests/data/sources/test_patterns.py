"""Patterns name files in an order of their own, and signs in names of folders are no patterns."""

import pytest

from clip_jax.data.sources.patterns import expand


def test_braces_and_wildcards_name_files_in_order(tmp_path):
    for name in ("a1", "a2", "b1", "c"):
        (tmp_path / name).touch()
    names = [path.rpartition("/")[2] for path in expand(f"{tmp_path}/{{b,a}}*")]
    assert names == ["b1", "a1", "a2"]
    assert expand(f"{tmp_path}/a{{2..1}}") == [f"{tmp_path}/a2", f"{tmp_path}/a1"]


@pytest.mark.parametrize("folder", ["run[1]", "a*b", "what?", "{x,y}", "[!a]", "plain"])
@pytest.mark.parametrize("pattern", ["*.tar", "{0,1}.tar", "[01].tar"])
def test_the_folder_is_taken_literally(tmp_path, folder, pattern):
    for name in (folder, "run1", "x"):
        (tmp_path / name).mkdir(exist_ok=True)
    for name in ("0.tar", "1.tar"):
        (tmp_path / folder / name).touch()
    assert expand(f"{tmp_path}/{folder}/{pattern}") == [
        f"{tmp_path}/{folder}/{n}.tar" for n in (0, 1)
    ]
    assert expand(f"{tmp_path}/{folder}/0.tar") == [f"{tmp_path}/{folder}/0.tar"]


@pytest.mark.parametrize("braces", ["{0..99999999}", 3000 * "{" + "a"], ids=["range", "nested"])
def test_more_files_than_anybody_has_are_refused_at_once(braces, tmp_path):
    with pytest.raises(ValueError, match="names more than 1_000_000 files"):
        expand(f"{tmp_path}/{braces}.tar")
