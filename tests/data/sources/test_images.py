"""Pictures without captions: all of a folder, in order; never trained or measured on."""

import pytest

from clip_jax.config import DataConfig
from clip_jax.data.sources import registry
from clip_jax.data.tools.stats import summarize


@pytest.fixture
def folder(tmp_path, encode):
    root = tmp_path / "pictures"
    (root / "b").mkdir(parents=True)
    for number, name in enumerate(["b/2.png", "a.PNG", "b/1.jpg", ".hidden.png"]):
        (root / name).write_bytes(encode((number, 0, 0)))
    (root / "notes.txt").write_text("no picture")
    return root


def test_all_pictures_come_in_the_order_of_their_paths(folder):
    source = registry.open_source(f"images:{folder}", "train", DataConfig())
    samples = [source[index] for index in range(len(source))]
    assert [sample.key for sample in samples] == ["a.PNG", "b/1.jpg", "b/2.png"]
    assert [sample.path for sample in samples] == [f"{folder}/{sample.key}" for sample in samples]
    assert [sample.shard for sample in samples] == ["pictures", "b", "b"]
    assert all(sample.captions == () for sample in samples)
    assert samples[1].image == (folder / "b/1.jpg").read_bytes()
    assert "1 files are skipped" in source.notes[0]
    assert summarize(source, DataConfig(), max_samples=9).samples == 3


@pytest.mark.parametrize("opened", ["sources", "eval_source"])
def test_a_run_is_refused_on_them(opened, folder):
    cfg = DataConfig(source=(f"images:{folder}",), eval_source=f"images:{folder}")
    with pytest.raises(ValueError, match="has no captions"):
        registry.open_sources(cfg) if opened == "sources" else registry.open_eval_source(cfg)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        registry.open_source(f"images:{tmp_path}", "train", DataConfig())
    with pytest.raises(FileNotFoundError, match="is not there"):
        registry.open_source(f"images:{tmp_path}/none", "train", DataConfig())
