"""A collection is embedded whole, in order, once, however often the command was interrupted."""

import dataclasses
import hashlib
import json
import re
import threading

import jax
import numpy as np
import pytest

from clip_jax.collection import embed as embed_lib
from clip_jax.collection.embeddings import open_embeddings
from clip_jax.collection.layout import Layout
from clip_jax.config import DataConfig, MeshConfig
from clip_jax.evaluation.encode import Encoder
from clip_jax.sharding import make_mesh

KEPT = [index for index in range(43) if index not in (5, 17)]


def content(folder) -> dict[str, str]:
    """A checksum of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_rows_are_the_embeddings_of_the_samples_in_order(collection, loaded, apply, pictures):
    found = open_embeddings(collection)
    samples = [pictures()[index] for index in KEPT]
    pixels = np.stack([loaded.preprocess(sample.image) for sample in samples])
    tokens = loaded.tokenizer([sample.captions[0] for sample in samples])
    expected = {
        "image": apply(loaded.variables, pixels, method="encode_image"),
        "text": apply(loaded.variables, tokens, method="encode_text"),
    }
    rows = np.arange(found.rows)
    for kind, z_NE in expected.items():
        np.testing.assert_allclose(found.vectors[kind].take(rows), z_NE, atol=2e-6)
    table = found.metadata.to_pydict()
    assert table["sample"] == KEPT
    assert table["key"] == [sample.key for sample in samples]
    assert table["caption"] == [sample.captions[0] for sample in samples]
    assert table["label"] == [sample.label for sample in samples]
    assert table["image_path"][:2] == ["p/0", "/pictures/1.png?token=***"]


def test_bad_samples_are_absent_and_named(collection):
    lines = (collection / "bad_samples.jsonl").read_text().splitlines()
    named = [json.loads(line) for line in lines]
    assert [(one["sample"], one["key"], one["reason"]) for one in named] == [
        (5, "p/5", "missing-file"),
        (17, "p/17", "missing-file"),
    ]
    manifest = json.loads((collection / "manifest.json").read_text())
    assert (manifest["rows"], manifest["bad_samples"]["bad"]) == (41, 2)
    assert [part["rows"] for part in manifest["parts"]] == [15, 15, 11]


def test_too_many_bad_samples_end_it_as_in_training(embedded_by, tmp_path):
    with pytest.raises(ValueError, match=r"data\.max_bad_share"):
        embedded_by(tmp_path / "out", data=DataConfig(threads=1, max_bad_share=0.0))


@pytest.mark.parametrize("writes", range(0, 12, 3))
def test_what_is_killed_resumes_bit_identical(
    writes, collection, embedded_by, pictures, tmp_path, monkeypatch
):
    left, write = [writes], embed_lib.atomic_write

    class Killed(BaseException):
        pass

    def killed(path, data):
        if left[0] == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.name}.7.partial").write_bytes(b"half")
            raise Killed
        left[0] -= 1
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("clip_jax.collection.layout.atomic_write", killed)
        with pytest.raises(Killed):
            embedded_by(tmp_path / "out")
    resumed = pictures()
    embedded_by(tmp_path / "out", source=resumed)
    assert content(tmp_path / "out") == content(collection)
    # A part is four files: of those that are complete no sample is read again.
    assert min(resumed.reads) == writes // 4 * 16


@pytest.mark.parametrize(
    "name, place", [("img_emb/img_emb_0001.npy", -9), ("metadata/metadata_0001.parquet", 20)]
)
def test_a_damaged_or_missing_file_is_written_again(
    name, place, collection, embedded_by, pictures, tmp_path
):
    out = tmp_path / "out"
    embedded_by(out)
    damaged = bytearray((out / name).read_bytes())
    damaged[place] ^= 1
    (out / name).write_bytes(damaged)
    assert name in open_embeddings(out).damage()
    (out / "text_emb/text_emb_0002.npy").unlink()
    again = pictures()
    embedded_by(out, source=again)
    assert content(out) == content(collection)
    assert min(again.reads) == 16
    assert open_embeddings(out).damage() is None


def test_two_processes_write_what_one_writes(collection, embedded_by, tmp_path):
    meet = threading.Barrier(2)
    # Devices are split among processes; the same number computes the same bits.
    meshes = [
        make_mesh(MeshConfig(), jax.devices()[:1]),
        make_mesh(MeshConfig(), jax.devices()[1:2]),
    ]
    embedded_by(tmp_path / "alone", mesh=meshes[0])

    def one(index):
        embedded_by(
            tmp_path / "both",
            mesh=meshes[index],
            process_index=index,
            process_count=2,
            barrier=lambda name: meet.wait(60),
        )

    threads = [threading.Thread(target=one, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(tmp_path / "both") == content(tmp_path / "alone")


@pytest.mark.parametrize(
    "change, named", [({"dtype": "float16"}, "dtype"), ({"part_size": 8}, "part_size")]
)
def test_other_settings_are_refused_by_name(change, named, collection, embedded_by):
    with pytest.raises(ValueError, match=f"other settings: {named}"):
        embedded_by(collection, **change)


def test_another_source_is_refused(collection, embedded_by, pictures):
    class Other(pictures):
        fingerprint = "4567"

    with pytest.raises(ValueError, match=r"source_fingerprint .'0123' there, '4567' now"):
        embedded_by(collection, source=Other())


def test_another_model_is_refused(collection, embedded_by, loaded, mesh, pictures):
    changed = loaded._replace(variables=jax.tree.map(lambda x: x + 1e-7, loaded.variables))
    assert embed_lib.model_fingerprint(changed) != embed_lib.model_fingerprint(loaded)
    config = dataclasses.replace(loaded.model.config, remat="full", unroll=2)
    same = loaded._replace(model=type(loaded.model)(config))
    assert embed_lib.model_fingerprint(same) == embed_lib.model_fingerprint(loaded)
    reading = dataclasses.replace(config.preprocess, interpolation="bilinear")
    other = type(loaded.model)(dataclasses.replace(config, preprocess=reading))
    other = loaded._replace(model=other)
    assert embed_lib.model_fingerprint(other) != embed_lib.model_fingerprint(loaded)


def test_rows_that_fill_up_a_batch_do_not_thin_out_bad_samples(embedded_by, tmp_path):
    few = DataConfig(threads=1, max_bad_share=0.04)  # 2 of 43, but not of the 64 rows of a batch
    with pytest.raises(ValueError, match=r"2 of 43 samples cannot be used"):
        embedded_by(tmp_path / "e", data=few, batch_size=64, part_size=64)


def test_a_folder_with_other_files_is_refused(embedded_by, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="holds other files"):
        embedded_by(tmp_path)


def test_images_alone_need_no_tokenizer_and_no_caption(loaded, mesh, pictures, tmp_path):
    class Plain(pictures):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), captions=())

    data = DataConfig(threads=1, max_bad_share=0.5)
    settings = {"data": data, "mesh": mesh, "origin": {}}
    cfg = embed_lib.EmbedConfig(what="images", batch_size=8, part_size=16)
    bare = loaded._replace(tokenizer=None)
    manifest = embed_lib.embed(bare, Plain(), str(tmp_path / "a"), cfg=cfg, **settings)
    assert (manifest["kinds"], manifest["rows"]) == (["image"], 41)
    cfg = embed_lib.EmbedConfig(what="both", batch_size=8, part_size=16)
    with pytest.raises(ValueError, match="tokenizer"):
        embed_lib.embed(bare, Plain(), str(tmp_path / "b"), cfg=cfg, **settings)


def test_parts_beyond_four_digits_sort_as_their_numbers():
    names = [Layout("out", 12_345).vectors("image", number) for number in (9, 10, 9_999, 10_000)]
    assert names == sorted(names)
    assert Layout("out", 3).vectors("text", 2) == "text_emb/text_emb_0002.npy"


def test_progress_shows_rate_and_time_left(embedded_by, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clip_jax.runs.console.LINE_EVERY_S", 0.0)
    embedded_by(tmp_path / "out", progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"sample 16/43 \(37 %\): \d+/s, bad \d+, .* left", lines[0])
    assert re.fullmatch(r"sample 43/43 \(100 %\): \d+/s, bad 2", lines[-1])


@pytest.mark.parametrize("kind", ["image", "text"])
def test_embeddings_that_are_not_finite_are_never_written(kind, embedded_by, monkeypatch, tmp_path):
    whole = Encoder.encode_pairs

    def broken(self, batches):
        for batch, z in whole(self, batches):
            yield batch, z | {kind: np.full_like(z[kind], np.nan)}

    monkeypatch.setattr(Encoder, "encode_pairs", broken)
    with pytest.raises(ValueError, match=f"embeddings of 8 of 8 {kind}s from sample 0 on"):
        embedded_by(tmp_path / "e")
    assert not (tmp_path / "e/manifest.json").exists()
