"""A folder for each class is a labelled set, on a disk and in a bucket."""

import logging
import pickle

import fsspec
import pytest

from clip_jax.data.samples import BadSample
from clip_jax.data.sources.registry import open_eval_source, open_source


@pytest.fixture
def root(tmp_path, encode):
    """Two images of sharks, three of tenches, one of them deeper, and what is no image."""
    root = tmp_path / "val"
    files = {"n02": ["b.JPEG", "a.png", "more/c.jpg"], "n01": ["x.jpg", "y.webp"]}
    for label, (folder, names) in enumerate(sorted(files.items())):
        for number, name in enumerate(names):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = {"jpg": "JPEG", "JPEG": "JPEG"}.get(name.split(".")[1], name.split(".")[1])
            path.write_bytes(encode((label, number, 0), kind=kind))
    (root / "n01" / "notes.txt").write_text("no image")
    (root / "n01" / ".hidden.jpg").write_bytes(b"")
    (root / ".cache").mkdir()
    (root / "README.md").write_text("no class")
    return root


def test_folders_are_classes_in_their_order(root, settings):
    source = open_source(f"folder:{root}", "test", settings())
    assert source.classes == ("n01", "n02") and len(source) == 5
    assert [(sample.key, sample.label, sample.captions) for sample in source] == [
        ("n01/x.jpg", 0, ("n01",)),
        ("n01/y.webp", 0, ("n01",)),
        ("n02/a.png", 1, ("n02",)),
        ("n02/b.JPEG", 1, ("n02",)),
        ("n02/more/c.jpg", 1, ("n02",)),
    ]
    assert source[4].image == (root / "n02" / "more" / "c.jpg").read_bytes()
    assert source[4].shard == "n02"
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == source[3] and copy.fingerprint == source.fingerprint


def test_names_of_classes_lie_beside_the_folders(root, settings):
    (root / "classnames.txt").write_text("shark\ntench\n")
    by_line = open_source(f"folder:{root}/", "test", settings())
    (root / "classnames.txt").write_text("n02\ttench\nn03\tcock\nn01\tshark\n")
    by_key = open_source(f"folder:{root}", "train", settings())
    assert by_line.classes == by_key.classes == ("shark", "tench")
    assert by_key[2].captions == ("tench",)
    (root / "classnames.txt").write_text("shark\n")
    with pytest.raises(ValueError, match=r"classnames\.txt names 1 classes and there are 2"):
        open_source(f"folder:{root}", "test", settings())


def test_it_is_evaluated_on_where_it_is_named(root, settings):
    assert open_eval_source(settings(source=(f"folder:{root}",))) is None
    assert len(open_eval_source(settings(eval_source=f"folder:{root}"))) == 5


def test_a_bucket_holds_the_same(root, settings):
    (root / "classnames.txt").write_text("shark\ntench\n")
    bucket = fsspec.filesystem("memory")
    bucket.put(str(root), "/set/val", recursive=True)
    try:
        here = open_source(f"folder:{root}", "test", settings())
        there = open_source("folder:memory://set/val", "test", settings())
        assert list(there) == list(here) and there.classes == here.classes
        assert there.fingerprint == here.fingerprint
    finally:
        bucket.rm("/set", recursive=True)


def test_a_file_that_vanishes_is_a_bad_sample(root, settings):
    source = open_source(f"folder:{root}", "test", settings())
    (root / "n02" / "a.png").unlink()
    with pytest.raises(BadSample, match=r"n02/a\.png: missing-file"):
        source[2]


def test_codes_instead_of_names_are_warned_of(tmp_path, encode, settings, caplog):
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764" / "a.png").write_bytes(encode((1, 2, 3)))
    with caplog.at_level(logging.WARNING, "absl"):
        open_source(f"folder:{tmp_path}", "test", settings())
    assert "n01440764" in caplog.text and "classnames.txt" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ((), "has no folders in it"),
        (("train/cat", "val/cat"), r"folders called train, val.*folder:.*/train"),
        (("cat", "dog"), r"2 of 2 class folders in .* have no image in them: cat, dog"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, settings, make, message):
    for name in make:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        open_source(f"folder:{tmp_path}", "test", settings())


def test_a_folder_that_is_not_there_is_named(tmp_path, settings):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not there \(data\.source 'folder:"):
        open_source(f"folder:{tmp_path}/nowhere", "test", settings())
    (tmp_path / "f").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"f is no folder"):
        open_source(f"folder:{tmp_path}/f", "test", settings())
