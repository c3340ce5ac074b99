"""A subset is the named samples of a source, of any format, and of no other data."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data.loader import train_batches
from clip_jax.data.sources import shapes
from clip_jax.data.sources.registry import open_eval_source, open_source, open_sources
from clip_jax.data.subset_file import SubsetFile, write_subset
from clip_jax.data.tools.convert import convert
from clip_jax.data.tools.make_subset import make_subset
from clip_jax.data.tools.stats import summarize

KEPT = [2, 3, 11]
FORMATS = ("tar", "pairs", "folder", "parquet", "records", "shapes", "outside.source")


@pytest.fixture
def spec_of(tmp_path, shards, settings, encode, monkeypatch):
    """Format -> a source of it with at least a dozen samples."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "extending")

    def spec(kind: str) -> str:
        folder = tmp_path / kind
        if kind == "shapes":
            monkeypatch.setitem(shapes.SIZES, "tiny", (16, 16))  # quicker to draw
            return "shapes:tiny"
        if kind == "outside.source":
            return "outside.source:Colors:12"
        if kind == "tar":
            return f"tar:{shards}/*.tar"
        if kind == "records":
            convert(f"tar:{shards}/*.tar", settings(), str(folder), workers=1, shard_samples=20)
            return f"records:{folder}/*.array_record"
        folder.mkdir()
        for number in range(12):
            path = folder / ("a" if number < 6 else "b")
            path.mkdir(exist_ok=True)
            (path / f"{number:02d}.png").write_bytes(encode((0, number, 0)))
        names = [f"{'a' if n < 6 else 'b'}/{n:02d}.png" for n in range(12)]
        if kind == "pairs":
            rows = [f"{name},caption {number}" for number, name in enumerate(names)]
            (folder / "list.csv").write_text("\n".join(["file,caption", *rows]))
            return f"pairs:{folder}/list.csv"
        if kind == "parquet":
            images = [(folder / name).read_bytes() for name in names]
            table = pa.table({"image": images, "caption": [f"c {n}" for n in range(12)]})
            pq.write_table(table, folder / "part.parquet")
            return f"parquet:{folder}/*.parquet"
        return f"folder:{folder}"

    return spec


@pytest.fixture
def write(tmp_path):
    """(source, numbers, name) -> the path of a subset file of the source."""

    def _write(source, numbers=KEPT, name="kept"):
        about = {"fingerprint": source.fingerprint, "samples": len(source)}
        return write_subset(tmp_path / f"{name}.safetensors", numbers, source=source.name, **about)

    return _write


@pytest.mark.parametrize("kind", FORMATS)
def test_every_source_is_read_as_its_part(kind, spec_of, settings, write):
    cfg = settings()
    spec = spec_of(kind)
    whole = open_source(spec, "train", cfg)
    part = open_source(spec, "train", replace(cfg, subset=(write(whole, KEPT),)))
    assert [part[i] for i in range(len(part))] == [whole[i] for i in KEPT]
    assert (part.classes, part.templates) == (whole.classes, whole.templates)
    assert part.fingerprint != whole.fingerprint
    again = pickle.loads(pickle.dumps(part))
    assert len(pickle.dumps(part.subset)) < 1000 and again[2] == whole[KEPT[2]]
    with pytest.raises(IndexError):
        part[len(KEPT)]
    entire = open_source(spec, "train", replace(cfg, subset=("all",)))
    assert (len(entire), entire.fingerprint) == (len(whole), whole.fingerprint)


@pytest.mark.parametrize(("workers", "shuffle"), [(0, "global"), (1, "global"), (0, "block")])
def test_batches_are_functions_of_seed_and_step_and_hold_the_subset_alone(
    workers, shuffle, shards, settings, write, reading
):
    cfg = settings(source=(f"tar:{shards}/*.tar",), workers=workers, shuffle=shuffle)
    kept = [0, 4, 5, 9, 15, 16, 21, 29]
    path = write(open_source(cfg.source[0], "train", cfg), kept)
    (part,) = open_sources(replace(cfg, subset=(path,)))

    def read(start, count):
        with train_batches(part, cfg=cfg, seed=3, start_step=start, **reading) as batches:
            return [next(batches)["image"][:, 0, 0, 1].tolist() for _ in range(count)]

    epochs = read(0, 3)
    assert [sorted(epoch) for epoch in epochs] == [kept] * 3 and epochs[0] != epochs[1]
    assert read(1, 2) == epochs[1:]


def test_a_mixture_takes_one_subset_for_each_source(shards, settings, write):
    cfg = settings(source=(f"tar:{shards}/00000.tar", f"tar:{shards}/00001.tar"))
    first = open_source(cfg.source[0], "train", cfg)
    path = write(first, [1, 2])
    parts = open_sources(replace(cfg, subset=(path, "all")))
    assert [len(part) for part in parts] == [2, 10]
    with pytest.raises(ValueError, match="names 1 files for 2 sources"):
        open_sources(replace(cfg, subset=(path,)))
    with pytest.raises(ValueError, match="names 2 files for one source"):
        open_source(cfg.source[0], "train", replace(cfg, subset=(path, "all")))


def test_test_data_have_a_subset_of_their_own(shards, settings, write):
    test = f"tar:{shards}/00002.tar"
    cfg = settings(source=(f"tar:{shards}/00000.tar",), eval_source=test)
    train = write(open_source(cfg.source[0], "train", cfg), [1, 2])
    cfg = replace(cfg, subset=(train,))
    assert len(open_eval_source(cfg)) == 10
    path = write(open_source(test, "test", settings()), [0, 5, 6], "test")
    assert len(open_eval_source(replace(cfg, eval_subset=path))) == 3


def test_a_subset_of_other_data_is_refused_by_name(shards, settings, write):
    one, two = f"tar:{shards}/00000.tar", f"tar:{shards}/00001.tar"
    path = write(open_source(one, "train", settings()), [1])
    with pytest.raises(ValueError, match=r"kept\.safetensors is a subset of tar:.*00000\.tar.*10 samples.*00001\.tar"):  # fmt: skip
        open_source(two, "train", settings(subset=(path,)))


@pytest.mark.parametrize("place", [-1, -9, 12, 300])
def test_a_flipped_bit_is_refused(shards, settings, write, place):
    spec = f"tar:{shards}/*.tar"
    path = Path(write(open_source(spec, "train", settings()), range(0, 30, 2)))
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="kept"):
        open_source(spec, "train", settings(subset=(str(path),)))


def test_half_a_file_and_another_file_are_refused(shards, settings, write, tmp_path):
    spec = f"tar:{shards}/*.tar"
    path = Path(write(open_source(spec, "train", settings()), range(20)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        open_source(spec, "train", settings(subset=(str(path),)))
    path.write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="no subset file"):
        open_source(spec, "train", settings(subset=(str(path),)))
    with pytest.raises(FileNotFoundError, match="no subset file"):
        open_source(spec, "train", settings(subset=(str(tmp_path / "no.safetensors"),)))
    with pytest.raises(ValueError, match=r"neither a subset file"):
        open_source(spec, "train", settings(subset=("kept.npy",)))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [([1, 1, 2], "1 sample numbers are named more than once"), ([5, -1], "no sample -1"), ([30], "no sample 30")],
)  # fmt: skip
def test_numbers_that_are_of_no_sample_are_not_written(numbers, said, shards, settings, write):
    with pytest.raises(ValueError, match=said):
        write(open_source(f"tar:{shards}/*.tar", "train", settings()), numbers)


def test_a_list_of_keys_is_the_samples_of_these_keys(shards, settings, tmp_path):
    spec, path = f"tar:{shards}/*.tar", tmp_path / "keys.txt"
    whole = open_source(spec, "train", settings())
    path.write_text("".join(f"{whole[i].key}\r\n" for i in (20, 3, 3, 7)) + "\n")
    part = open_source(spec, "train", settings(subset=(str(path),)))
    assert list(part) == [whole[i] for i in (3, 7, 20)]
    path.write_text(f"{whole[4].key}\nnone.tar/1\nnone.tar/2")
    with pytest.raises(ValueError, match=r"keys\.txt: 2 of 3 keys are not in tar:.* such as 'none\.tar/1', 'none\.tar/2'.*'00000\.tar/00000'"):  # fmt: skip
        open_source(spec, "train", settings(subset=(str(path),)))


def test_a_key_of_two_samples_is_refused(settings, tmp_path, encode, write_tar):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", {"1.png": encode((1, 2, 3)), "1.txt": b"text"})
    spec, keys = f"tar:{tmp_path}/*/0.tar", tmp_path / "keys.txt"
    keys.write_text(open_source(spec, "train", settings())[0].key)
    with pytest.raises(ValueError, match="1 keys are of more than one sample"):
        open_source(spec, "train", settings(subset=(str(keys),)))


def test_a_subset_file_is_made_of_numbers_and_of_truth_values(shards, settings, tmp_path):
    spec, out = f"tar:{shards}/*.tar", str(tmp_path / "kept.safetensors")
    whole = open_source(spec, "train", settings())
    np.save(tmp_path / "kept.npy", np.array([9, 1]))
    assert "2 of 30" in make_subset(whole, str(tmp_path / "kept.npy"), out)
    part = open_source(spec, "train", settings(subset=(out,)))
    assert list(part) == [whole[1], whole[9]]
    # A part of a part is a part of the whole.
    np.save(tmp_path / "kept.npy", np.array([False, True]))
    make_subset(part, str(tmp_path / "kept.npy"), out)
    assert list(open_source(spec, "train", settings(subset=(out,)))) == [whole[9]]
    np.save(tmp_path / "kept.npy", np.array([1, 30, 31]))
    with pytest.raises(ValueError, match="2 of 3 numbers are of no sample, such as 30"):
        make_subset(whole, str(tmp_path / "kept.npy"), out)


def test_the_file_is_read_by_the_library_of_its_format(shards, settings, write):
    from safetensors import safe_open

    source = open_source(f"tar:{shards}/*.tar", "train", settings())
    path = write(source, [5, 1])
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("numbers").tolist() == [1, 5]
        assert file.metadata()["source_fingerprint"] == source.fingerprint
    assert SubsetFile(path).numbers_N.dtype == np.uint32


def test_tools_see_the_part(shards, settings, write, tmp_path):
    spec = f"tar:{shards}/*.tar"
    path = write(open_source(spec, "train", settings()), range(12))
    cfg = settings(subset=(path,))
    summary = summarize(open_source(spec, "train", cfg), cfg)
    assert summary.samples == 12 and "keeps 12 of 30" in summary.notes[-1]
    convert(spec, cfg, str(tmp_path / "out"), workers=1)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"] == 12
