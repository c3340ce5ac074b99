"""Tar shards are read at random, as webdataset means them, damage and all."""

import json
import logging
import os
import pickle
import tarfile

import pytest

from clip_jax import storage
from clip_jax.data.samples import BadSample
from clip_jax.data.sources import tar
from clip_jax.data.sources.registry import open_source


@pytest.fixture
def read(tmp_path, write_tar, settings, encode):
    """Write one shard of these files and open it; "P" stands for a picture."""

    def _read(files, **columns):
        files = {name: encode((1, 2, 3)) if data == "P" else data for name, data in files.items()}
        path = write_tar(tmp_path / "s.tar", files)
        for index in tmp_path.glob(".*.tarindex"):  # of an earlier shard of this name
            index.unlink()
        return open_source(f"tar:{path}", "train", settings(**columns))

    return _read


def reasons(source):
    found = {}
    for index in range(len(source)):
        try:
            source[index]
        except BadSample as error:
            found[index] = error.reason
    return found


def test_samples_are_found_by_number_in_any_order(shards, settings, encode):
    source = open_source(f"tar:{shards}/{{00000..00002}}.tar", "train", settings())
    assert len(source) == 30
    for number in (29, 0, 10, 9, 17):
        sample = source[number]
        assert sample.image == encode((0, number, 0)) and sample.captions == (f"text {number}",)
        assert sample.shard == f"0000{number // 10}.tar"
        assert sample.key == f"0000{number // 10}.tar/{number:05d}"


def test_a_copy_in_another_process_reads_the_same(shards, settings):
    source = open_source(f"tar:{shards}/*.tar", "train", settings())
    assert pickle.loads(pickle.dumps(source))[13] == source[13]


def test_captions_come_from_json_where_there_is_no_text(read):
    source = read({"1.jpg": "P", "1.json": b'{"caption": "from json", "url": "x"}'})
    assert source[0].captions == ("from json",)


def test_fields_with_probabilities_share_them_among_lists(read):
    row = {"caption": "alt", "synthetic": ["a", "b"], "other": None}
    source = read(
        {"1.jpg": "P", "1.json": json.dumps(row).encode(), "1.txt": b"plain"},
        caption_column="txt=1,synthetic=2,other=5",
    )
    assert source[0].captions == ("plain", "a", "b")
    assert source[0].caption_probs == pytest.approx((1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize("name", ["jpg", "jpeg", "PNG", "webp", "0.jpg"])
def test_images_of_every_kind_are_found(read, name):
    assert read({f"1.{name}": "P", "1.txt": b"a"})[0].captions == ("a",)


def test_one_of_several_images_can_be_named(read, encode):
    files = {"1.a.jpg": b"wrong", "1.b.jpg": "P", "1.txt": b"a"}
    assert read(files, image_column="b.jpg")[0].image == encode((1, 2, 3))


def test_the_member_whose_whole_extension_is_an_images_comes_first(read, encode):
    files = {
        "1.0.depth.png": b"x",
        "1.depth.png": b"depth",
        "1.seg.jpg": b"x",
        "1.jpg": "P",
        "1.txt": b"a",
    }
    assert read(files)[0].image == encode((1, 2, 3))
    assert read({"1.depth.png": "P", "1.txt": b"a"})[0].image == encode((1, 2, 3))


def test_an_extension_that_is_asked_for_need_not_be_known(read, encode):
    files = {"1.pic": encode((1, 2, 3), kind="GIF"), "1.txt": b"a"}
    with pytest.raises(ValueError, match="have no images in them"):
        read(files)
    assert read(files, image_column="pic")[0].image == files["1.pic"]
    with pytest.raises(
        ValueError, match=r"no image was found in any of 1 samples.*data\.image_column"
    ):
        read(files, image_column="tga")


IMAGENET = {"1.jpg": "P", "1.cls": b"1", "2.jpg": "P", "2.cls": b"0\n", "3.jpg": "P", "3.cls": b"9"}


def test_labels_are_the_members_called_cls(read, tmp_path):
    (tmp_path / "classnames.txt").write_text("tench\nshark\n")
    source = read(IMAGENET)
    assert source.classes == ("tench", "shark")
    assert [(source[i].label, source[i].captions) for i in (0, 1)] == [
        (1, ("shark",)),
        (0, ("tench",)),
    ]
    assert reasons(source) == {2: "missing-caption"}  # a class that has no name
    captioned = read({"1.jpg": "P", "1.cls": b"1", "1.txt": b"a fish"})
    assert (captioned[0].label, captioned[0].captions) == (1, ("a fish",))
    other = read({"1.jpg": "P", "1.json": b'{"fine": 1}', "1.cls": b"0"}, label_column="fine")
    assert other[0].label == 1


def test_labels_without_names_can_be_evaluated_and_not_trained_on(read, tmp_path, settings):
    with pytest.raises(ValueError, match=r"no captions, only labels without names"):
        read(IMAGENET)
    source = open_source(f"tar:{tmp_path}/s.tar", "test", settings())
    assert [(sample.label, sample.captions) for sample in source] == [
        (1, ("",)),
        (0, ("",)),
        (9, ("",)),
    ]
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_samples_that_lack_something_say_what(read):
    source = read(
        {
            "1.jpg": "P", "1.txt": b"fine",
            "2.jpg": "P",
            "3.txt": b"alone",
            "4.jpg": "P", "4.txt": b"  ",
            "5.jpg": "P", "5.json": b"{not json",
            "6.jpg": "P", "6.json": b'{"caption": ""}',
        }
    )  # fmt: skip
    assert len(source) == 6
    assert reasons(source) == {
        1: "missing-caption",
        2: "missing-image",
        3: "missing-caption",
        4: "missing-caption",
        5: "missing-caption",
    }


def test_a_zeroed_header_costs_one_sample_and_not_the_rest(shards, settings, caplog):
    path = shards / "00001.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"00014.png")
    data[place : place + 512] = bytes(512)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "absl"):
        source = open_source(f"tar:{shards}/*.tar", "train", settings())
    assert len(source) == 30
    assert set(reasons(source)) == {14} and source[15].captions == ("text 15",)
    assert f"00001.tar at byte {place}" in caplog.text


def test_a_damaged_long_name_costs_one_sample(tmp_path, settings, write_tar, encode, caplog):
    files = {}
    for number in range(3):
        files[f"{'n' * 120}{number}.png"] = encode((0, number, 0))
        files[f"{'n' * 120}{number}.txt"] = b"a caption"
    path = write_tar(tmp_path / "s.tar", files, format=tarfile.PAX_FORMAT)
    data = path.read_bytes()
    path.write_bytes(data.replace(f"{'n' * 120}1.png\n".encode(), b"n" * 126))
    with caplog.at_level(logging.WARNING, "absl"):
        source = open_source(f"tar:{path}", "train", settings())
    assert len(source) == 3 and reasons(source) == {1: "missing-image"}
    assert "1 of 1 tar shards are damaged" in caplog.text


def test_a_truncated_shard_is_named_and_its_last_sample_bad(shards, settings, caplog):
    path = shards / "00002.tar"
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"00025.png") + 512 + 20])
    with caplog.at_level(logging.WARNING, "absl"):
        source = open_source(f"tar:{shards}/*.tar", "train", settings())
    assert len(source) == 26 and reasons(source) == {25: "truncated-tar"}
    assert "1 of 3 tar shards are damaged" in caplog.text and "00002.tar" in caplog.text


def test_a_pattern_that_matches_nothing_is_named(tmp_path, settings):
    with pytest.raises(FileNotFoundError, match=r"none/\*\.tar' matches no file"):
        open_source(f"tar:{tmp_path}/none/*.tar", "train", settings())


def test_a_shard_of_a_range_that_is_missing_is_named(shards, settings):
    with pytest.raises(FileNotFoundError, match=r"1 of the files .*first is .*00003\.tar"):
        open_source(f"tar:{shards}/{{00000..00003}}.tar", "train", settings())


def test_shards_without_captions_are_refused_by_name(shards, settings, write_tar, encode):
    write_tar(shards / "00001.tar", {"1.jpg": encode((1, 1, 1)), "1.cls": b"3"})
    with pytest.raises(ValueError, match=r"1 of 3 tar shards have no captions.*00001\.tar"):
        open_source(f"tar:{shards}/*.tar", "train", settings())


def test_shards_without_images_are_refused_by_name(shards, settings, write_tar):
    write_tar(shards / "00001.tar", {"1.mp4": b"x", "1.txt": b"3"})
    with pytest.raises(ValueError, match=r"1 of 3 tar shards have no images.*00001\.tar"):
        open_source(f"tar:{shards}/*.tar", "train", settings())


def test_empty_shards_alone_are_refused(read):
    with pytest.raises(ValueError, match="no tar shard has a sample"):
        read({})


def test_a_caption_field_that_is_not_there_is_refused_at_start(shards, settings):
    with pytest.raises(
        ValueError, match=r"no caption was found.*data\.caption_column names a field"
    ):
        open_source(f"tar:{shards}/*.tar", "train", settings(caption_column="titel"))


def test_a_numeric_caption_field_is_refused_at_start(read):
    files = {}
    for number in range(5):
        files[f"{number}.jpg"] = "P"
        files[f"{number}.json"] = json.dumps({"width": 100 + number}).encode()
    with pytest.raises(ValueError, match=r"s\.tar: the caption column 'width' holds int, not text"):
        read(files, caption_column="width")


def test_a_shard_that_vanishes_is_tried_again_and_then_named(shards, settings, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))
    source = open_source(f"tar:{shards}/*.tar", "train", settings())
    path = str(shards / "00001.tar")
    storage._files.forget(path)
    os.rename(path, path + ".away")
    with pytest.raises(FileNotFoundError, match=r"00001\.tar cannot be read, after 3 tries"):
        source[12]
    assert source[22].captions == ("text 22",)
    os.rename(path + ".away", path)
    assert source[12].captions == ("text 12",)


def test_indexing_anew_mends_a_stale_index_and_says_what_is_wrong(
    shards, settings, write_tar, encode
):
    pattern = f"{shards}/*.tar"
    open_source(f"tar:{pattern}", "train", settings())
    files = {"1.png": encode((1, 1, 1)), "1.txt": b"a", "2.png": encode((2, 2, 2))}
    path = write_tar(shards / "00001.tar", files)
    path.write_bytes(path.read_bytes() + b"x" * 512)
    report = str(tar.index(pattern, settings()))
    assert "22 samples in 3 shards" in report
    assert f"damaged at byte {path.stat().st_size - 512}: {path}" in report
    assert f"1 samples without captions: {path}" in report
    assert len(open_source(f"tar:{pattern}", "train", settings())) == 22
