"""One entry point opens every format and names every mistake."""

import os

import pytest

from clip_jax.data.sources.registry import (
    check_weights,
    fingerprint,
    has_captions,
    index_source,
    open_eval_source,
    open_source,
    open_sources,
)


def test_an_unknown_format_is_refused_with_the_known_ones(settings):
    with pytest.raises(
        ValueError, match=r"'lmdb:x': there is no format 'lmdb'.*pairs:FILE\.csv.*tfds"
    ):
        open_source("lmdb:x", "train", settings())


def test_a_format_says_whether_it_has_captions():
    assert has_captions("pairs:captions.csv")
    assert not has_captions("images:pictures")
    with pytest.raises(ValueError, match="there is no format 'lmdb'"):
        has_captions("lmdb:x")


@pytest.mark.parametrize("spec", ["pairs:", "pairs", "tfds:"])
def test_a_format_without_a_place_is_refused(settings, spec):
    with pytest.raises(ValueError, match=f"'{spec}' names no data; write {spec[:5].strip(':')}"):
        open_source(spec, "train", settings())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "has 1 numbers for 2 sources"),
        ((1.0, 0.0), r"gives 0\.0 to 'b'; a weight must be above 0"),
        ((1.0, -1.0), r"gives -1\.0 to 'b'"),
        ((float("nan"), 1.0), "gives nan to 'a'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(("a", "b"), weights)


def test_no_source_at_all_is_refused(settings):
    with pytest.raises(ValueError, match=r"data\.source is empty"):
        open_sources(settings(source=()))


def test_several_sources_are_opened_in_their_order(settings, tmp_path, encode):
    (tmp_path / "a.png").write_bytes(encode((1, 2, 3)))
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"image,caption\na.png,{name}\n")
    specs = tuple(f"pairs:{tmp_path}/{name}.csv" for name in ("one", "two"))
    sources = open_sources(settings(source=specs))
    assert [source[0].captions[0] for source in sources] == ["one", "two"]
    assert open_eval_source(settings(source=specs)) is None
    evaluated = open_eval_source(settings(source=specs, eval_source=specs[1]))
    assert evaluated[0].captions == ("two",)


@pytest.mark.parametrize(("batch_size", "warns"), [(2, False), (3, True)])
def test_a_batch_of_more_rows_than_samples_is_warned_of(
    settings, tmp_path, encode, caplog, batch_size, warns
):
    (tmp_path / "a.png").write_bytes(encode((1, 2, 3)))
    (tmp_path / "a.csv").write_text("image,caption\na.png,one\na.png,two\n")
    cfg = settings(source=(f"pairs:{tmp_path}/a.csv",), batch_size=batch_size, group_rows=False)
    open_sources(cfg)
    assert ("batch_size=3 is more than the 2 samples" in caplog.text) == warns


def test_the_fingerprint_knows_contents_order_and_weights(numbered):
    class Other(numbered):
        fingerprint = "4567"

    one, other = numbered(3), Other(3)
    prints = [
        fingerprint([one, other]),
        fingerprint([other, one]),
        fingerprint([one]),
        fingerprint([one, other], (1.0, 2.0)),
        fingerprint([one, other], (2.0, 1.0)),
    ]
    assert len(set(prints)) == 5 and fingerprint([one, other]) == prints[0]


def test_an_index_is_made_anew_where_a_format_has_one(settings, shards, tmp_path, encode):
    open_source(f"tar:{shards}/*.tar", "train", settings())
    os.utime(shards / "00000.tar", (5, 5))
    assert "30 samples in 3 shards" in index_source(f"tar:{shards}/*.tar", settings())
    assert len(open_source(f"tar:{shards}/*.tar", "train", settings())) == 30
    (tmp_path / "a.png").write_bytes(encode((1, 2, 3)))
    (tmp_path / "c.csv").write_text("image,caption\na.png,x\n")
    found = index_source(f"pairs:{tmp_path}/c.csv", settings())
    assert "1 samples; this format needs no index" in found


@pytest.mark.parametrize(
    "spec", ["/data/captions.csv", "captions.csv", "s3://bucket/{0..9}.tar", "./a"]
)
def test_a_path_without_its_format_is_told_to_have_one(settings, spec):
    kind = spec.partition(":")[0]
    with pytest.raises(
        ValueError, match=f"no format '{kind}'; a path has one before it.*pairs:FILE"
    ):
        open_source(spec, "train", settings())
