"""Data whose neighbours are alike are named where blocks of neighbours are to mix them."""

import logging
import types

import numpy as np
import pytest

from clip_jax import storage
from clip_jax.data import block_order
from clip_jax.data.samples import Sample
from clip_jax.data.sorted_data import likeness, warn_of_sorted_data
from clip_jax.data.sources.registry import open_source

CLASSES, EACH = 24, 50


@pytest.fixture
def written(tmp_path, write_tar, encode, monkeypatch):
    """Shards of 24 kinds of captions, and of labels, sorted and in a random order, in small blocks."""
    monkeypatch.setattr(block_order, "BLOCK_BYTES", (20_000, 60_000))
    root, image = tmp_path, encode((1, 2, 3))
    kinds = np.repeat(np.arange(CLASSES), EACH)
    for order in ("sorted", "random"):
        if order == "random":
            kinds = np.random.default_rng(0).permutation(kinds)
        for ending in ("txt", "cls"):
            (root / order / ending).mkdir(parents=True)
            for shard in range(4):
                files = {}
                for place in range(shard * len(kinds) // 4, (shard + 1) * len(kinds) // 4):
                    kind = int(kinds[place])
                    text = (
                        f"a photo of thing{kind} number {place}" if ending == "txt" else str(kind)
                    )
                    files[f"{place:05d}.png"] = image
                    files[f"{place:05d}.{ending}"] = text.encode()
                write_tar(root / order / ending / f"{shard}.tar", files)
            names = "".join(f"{n}\tthing {n}\n" for n in range(CLASSES))
            (root / order / ending / "classnames.txt").write_text(names)
    return root


@pytest.mark.parametrize("ending", ["txt", "cls"])
def test_sorted_data_are_told_from_data_in_random_order(written, settings, ending, caplog):
    cfg = settings(shuffle="block", shuffle_window_mb=1)
    for order in ("sorted", "random"):
        source = open_source(f"tar:{written}/{order}/{ending}/*.tar", "train", cfg)
        near, far = likeness(source)
        assert (near > far + 0.1) == (order == "sorted"), (near, far)
        with caplog.at_level(logging.WARNING):
            warn_of_sorted_data([source], cfg)
        said = [one for one in caplog.messages if "neighbours in the data are alike" in one]
        assert len(said) == (order == "sorted")
        assert all("--shuffle 0" in one and "data.shuffle_window_mb=1" in one for one in said)
        caplog.clear()


@pytest.mark.parametrize("changes", [{"shuffle": "global"}, {"shuffle_window_mb": 4000}])
def test_nothing_is_read_where_all_is_mixed(written, settings, changes, caplog, monkeypatch):
    cfg = settings(**{"shuffle": "block", "shuffle_window_mb": 1, **changes})
    source = open_source(f"tar:{written}/sorted/txt/*.tar", "train", cfg)
    monkeypatch.setattr(type(source), "span", None)
    warn_of_sorted_data([source], cfg)
    assert not caplog.messages


def test_a_run_of_neighbours_ends_with_its_block(written, settings, monkeypatch):
    monkeypatch.setattr(block_order, "BLOCK_BYTES", (8_000, 12_000))  # of a few samples
    source = open_source(f"tar:{written}/sorted/txt/*.tar", "train", settings(shuffle="block"))
    first_K, asked, span = source.blocks.first_K, [], type(source).span
    assert 1 < np.diff(first_K).max() < 16

    def note(self, start, end):
        asked.append((start, end))
        return span(self, start, end)

    monkeypatch.setattr(type(source), "span", note)
    near, far = likeness(source)
    assert near > far + 0.1
    blocks = dict(zip(first_K[:-1].tolist(), first_K[1:].tolist()))
    assert len(asked) > 4 and all(end == blocks[start] for start, end in asked)


@pytest.mark.parametrize("lost", [False, True])
def test_images_that_lie_apart_are_not_read_for_it(lost, monkeypatch):
    """And no storage that is out of order, which training waits for, ends the run before it begins."""
    read = []

    class Run:
        def __getitem__(self, index):
            read.append(index)
            if lost:
                raise OSError(f"{index}.jpg cannot be read, after 6 tries")
            return Sample(image=b"", captions=("a",), key="", shard="", path=f"{index}.jpg")

    source = types.SimpleNamespace(
        name="apart",
        blocks=block_order.Blocks(np.arange(0, 321, 20), 1e5),
        span=lambda start, end: types.SimpleNamespace(path="", start=0, end=1, info=None),
        unpack=lambda start, end, data: Run(),
    )
    monkeypatch.setattr(storage, "read_range", lambda *args, info: b"")
    assert likeness(source) is None
    assert len(read) == 8  # one of each run
