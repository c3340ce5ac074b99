"""Tars as people make them: every pair right, or refused in a sentence that names the cause."""

import bz2
import gzip
import io
import lzma
import tarfile

import pytest

from clip_jax.data.bad_samples import refuse_lost
from clip_jax.data.samples import BadSample
from clip_jax.data.sources.registry import open_eval_source, open_source, open_sources
from clip_jax.data.sources.tar_index import MAGIC, OLD_MAGIC
from clip_jax.data.tools.convert import convert


@pytest.fixture
def picture(encode):
    return lambda number: encode((20 * number, 100, 200))


@pytest.fixture
def read(tmp_path, settings):
    """Open the shard of these bytes."""

    def _read(data, name="s.tar", split="train", **changes):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        for index in path.parent.glob(".*.tarindex"):  # of an earlier shard of this name
            index.unlink()
        return open_source(f"tar:{path}", split, settings(**changes))

    return _read


def tar(files):
    """The bytes of a tar of (name, content) pairs, in their order, as often as they come."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return file.getvalue()


def pairs(picture, names, *, text="txt"):
    """A picture and a text for each name, side by side."""
    for number, name in enumerate(names):
        yield f"{name}.png", picture(number)
        yield f"{name}.{text}", f"picture number {number}".encode()


def check(source, picture, count):
    assert len(source) == count
    for number in range(count):
        assert source[number].image == picture(number)
        assert source[number].captions == (f"picture number {number}",)


def test_members_that_do_not_lie_side_by_side_are_refused(read, picture):
    files = list(pairs(picture, "abc"))
    with pytest.raises(
        ValueError, match=r"do not lie beside each other, as in .*s\.tar those of 3"
    ):
        read(tar(files[::2] + files[1::2]))
    with pytest.raises(ValueError, match=r"those of 1: write them again .*--sort=name"):
        read(tar([files[0], *files[2:], files[1]]))


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a", "a"],  # one name again and again
        ["img.1", "img.2", "img.3"],  # dots in names
        ["x/a.v1", "x/a.v2", "y/a.v1"],
        ["a", "b", "a"],  # a name that comes back later
    ],
)
def test_pairs_whose_names_repeat_or_have_dots_stay_pairs(read, picture, names):
    check(read(tar(pairs(picture, names))), picture, 3)


def test_one_name_with_a_dot_is_one_sample_with_all_its_members(read, picture):
    source = read(tar([("a.v1.png", picture(0)), ("a.v1.txt", b"picture number 0"), ("b.png", picture(1)), ("b.seg.png", b"x"), ("b.txt", b"picture number 1")]))  # fmt: skip
    check(source, picture, 2)


def test_other_endings_of_texts_are_named_or_known(read, picture):
    check(read(tar(pairs(picture, "abc", text="cap")), caption_column="cap"), picture, 3)
    check(read(tar(pairs(picture, "abc", text="caption"))), picture, 3)
    with pytest.raises(ValueError, match=r"the extension of members with text"):
        read(tar(pairs(picture, "abc", text="cap")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (gzip.compress, "is compressed with gzip"),
        (bz2.compress, "is compressed with bzip2"),
        (lzma.compress, "is compressed with xz"),
        (lambda data: b"", "is empty"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "is a pointer of Git LFS"),
        (lambda data: b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (lambda data: b"<HTML><body>no", "is a web page"),
    ],
)  # fmt: skip
def test_what_is_no_tar_is_said_by_its_kind_and_counted(
    read, tmp_path, settings, picture, spoil, message
):
    data = tar(pairs(picture, "abc"))
    with pytest.raises(ValueError, match=rf"s\.tar {message}"):
        read(spoil(data))
    (tmp_path / "t.tar").write_bytes(data)
    pattern = f"tar:{tmp_path}/{{s,t}}.tar"
    source = open_source(pattern, "train", settings())
    check(source, picture, 3)
    assert source.lost == 3 and message in source.notes[0]
    for cfg in (settings(source=(pattern,)), settings(source=(), eval_source=pattern)):
        with pytest.raises(ValueError, match=rf"about 3 of 6 samples are in files.*{message}"):
            open_sources(cfg) if cfg.source else open_eval_source(cfg)
    assert open_sources(settings(source=(pattern,), max_bad_share=0.5))
    with pytest.raises(ValueError, match=r"max_bad_share=0\.4 allows"):
        refuse_lost(source, 0.4)


def test_appended_archives_and_tars_without_an_end_are_whole(read, picture, caplog):
    files = list(pairs(picture, "abcd"))
    check(read(tar(files[:4]) + tar(files[4:])), picture, 4)
    check(read(tar(files).rstrip(b"\0") + bytes(512 - len(tar(files).rstrip(b"\0")) % 512)), picture, 4)  # fmt: skip
    assert "damage" not in caplog.text


def test_names_in_latin1_give_keys_that_can_be_written(read, picture):
    names = [f"café{number}" for number in range(3)]
    files = [(name.encode("latin-1").decode("utf-8", "surrogateescape"), data) for name, data in pairs(picture, names)]  # fmt: skip
    source = read(tar(files))
    check(source, picture, 3)
    source[0].key.encode()


@pytest.mark.parametrize("folder", ["brackets [v1]", "a*b", "{x,y}"])
def test_folders_with_signs_of_patterns_in_their_names_are_read(read, tmp_path, settings, picture, folder):  # fmt: skip
    check(read(tar(pairs(picture, "abc")), name=f"{folder}/0.tar"), picture, 3)
    check(open_source(f"tar:{tmp_path / folder}", "train", settings()), picture, 3)


LINES = b"one view\n\nanother view\r\n"


def test_lines_are_captions_where_the_layout_or_a_setting_says_so(read, tmp_path, picture):
    data = tar([("a.png", picture(0)), ("a.txt", LINES)])
    assert read(data)[0].captions == ("one view another view",)
    assert "one caption each" in read(data).notes[0]
    source = read(data, caption_lines=True)
    assert source[0].captions == ("one view", "another view")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_type.txt").write_text("retrieval")
    for name in ("set/0.tar", "set/test/0.tar"):
        source = read(data, name=name)
        assert source[0].captions == ("one view", "another view")
        assert "dataset_type.txt says retrieval" in source.notes[0]
        assert len(read(data, name=name, caption_lines=False)[0].captions) == 1
    (tmp_path / "set" / "dataset_type.txt").write_text("zeroshot_classification")
    assert len(read(data, name="set/0.tar")[0].captions) == 1


@pytest.mark.parametrize(
    ("text", "captions"), [("três".encode("utf-16"), ("três",)), ("três".encode("utf-8-sig"), ("três",))]
)  # fmt: skip
def test_encodings_with_a_mark_are_recognised_and_others_counted(read, picture, text, captions):
    files = [("a.png", picture(0)), ("a.txt", text), ("b.png", picture(1)), ("b.txt", "três".encode("latin-1"))]  # fmt: skip
    source = read(tar(files))
    assert source[0].captions == captions
    with pytest.raises(BadSample, match="caption-not-utf8"):
        source[1]


def test_an_index_of_an_earlier_version_is_made_again(read, tmp_path, settings, picture):
    read(tar(pairs(picture, "abc")))
    (index,) = tmp_path.glob(".*.tarindex")
    index.write_bytes(index.read_bytes().replace(MAGIC, OLD_MAGIC))
    check(open_source(f"tar:{tmp_path}/s.tar", "train", settings()), picture, 3)
    assert index.read_bytes().endswith(MAGIC)


def test_shards_of_the_same_names_in_other_folders_have_indexes_of_their_own(
    tmp_path, settings, picture
):
    for folder, name in (("a", "x"), ("b", "y"), ("c", "z")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(tar(pairs(picture, [name])))
    keys = [
        [sample.key for sample in open_source(f"tar:{tmp_path}/{{a,{other}}}/0.tar", "train", settings())]
        for other in "bcbc"
    ]  # fmt: skip
    assert keys == [["0.tar/x", "0.tar/y"], ["0.tar/x", "0.tar/z"]] * 2


def test_training_and_test_shards_of_a_folder_are_told_apart(tmp_path, settings, picture):
    for name, pictures in (("train-0000", "ab"), ("validation-0000", "c"), ("test-0000", "d")):
        (tmp_path / f"{name}.tar").write_bytes(tar(pairs(picture, pictures)))
    spec = f"tar:{tmp_path}"
    train = open_source(spec, "train", settings())
    assert len(train) == 2 and "of other splits: " in train.notes[0]
    assert open_eval_source(settings(source=(spec,)))[0].key == "test-0000.tar/d"
    (tmp_path / "more.tar").write_bytes(tar(pairs(picture, "e")))
    with pytest.raises(ValueError, match=r"say no split, such as .*more\.tar"):
        open_source(spec, "train", settings())


def pairs_of(count, picture):
    return [(f"{k:03}.{end}", data) for k in range(count) for end, data in (("png", picture(k)), ("txt", f"text {k}".encode()))]  # fmt: skip


def test_what_a_damaged_shard_lacks_counts_as_lost(tmp_path, settings, picture):
    """Three whole shards of ten samples, and one that is cut off after four."""
    whole = tar(pairs_of(10, picture))
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(whole)
    (tmp_path / "3.tar").write_bytes(
        whole[: len(tar(pairs_of(4, picture))) // 10240 * 10240 - 3000]
    )
    source = open_source(f"tar:{tmp_path}", "train", settings())
    held = len(source) - 30
    assert 0 < held < 10 and source.lost == 10 - held
    assert any("1 of 4 tar shards are damaged" in note and "3.tar at byte" in note for note in source.notes)  # fmt: skip
    spec = (f"tar:{tmp_path}",)
    with pytest.raises(ValueError, match=r"samples are in files that cannot .*3\.tar at byte"):
        open_sources(settings(source=spec))
    assert len(open_sources(settings(source=spec, max_bad_share=0.3))[0]) == len(source)
    with pytest.raises(ValueError, match=r"max_bad_share=0\.01"):
        convert(spec[0], settings(), str(tmp_path / "out"))


def test_compressed_shards_of_a_folder_are_lost_and_other_files_named(tmp_path, settings, picture):
    (tmp_path / "0.tar").write_bytes(tar(pairs_of(3, picture)))
    (tmp_path / "1.tar.gz").write_bytes(gzip.compress(tar(pairs_of(3, picture))))
    (tmp_path / "0_stats.json").write_text("{}")
    source = open_source(f"tar:{tmp_path}", "train", settings())
    assert len(source) == source.lost == 3
    assert any("1.tar.gz is compressed with gzip" in note for note in source.notes)
    assert any("1 files are left out (1 .json)" in note for note in source.notes)


def test_samples_of_links_are_bad_and_not_lost(read, picture):
    """tar writes the second of two names of one file as a link, which has no bytes of its own."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        for name, data in (("0.png", picture(0)), ("0.txt", b"text 0")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
        for name, kind in (("1.png", tarfile.LNKTYPE), ("1.txt", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, f"0.{name[2:]}"
            out.addfile(info)
    source = read(file.getvalue())
    assert len(source) == 2 and source[0].captions == ("text 0",)
    with pytest.raises(BadSample, match="1: missing-image"):
        source[1]


def test_texts_of_several_lines_are_said_to_be_one_caption(read, picture):
    files = [
        ("0.png", picture(0)),
        ("0.txt", b"one\ntwo\n"),
        ("1.png", picture(1)),
        ("1.txt", b"three\n"),
    ]
    assert any("data.caption_lines=True" in note for note in read(tar(files)).notes)
    assert not read(tar(files), caption_lines=False, image_column="png")[0].captions[1:]
    assert not any("one caption each" in note for note in read(tar(files[2:])).notes)
    assert not any(
        "one caption each" in note for note in read(tar(files), caption_lines=True).notes
    )


def test_a_tar_of_nothing_is_said_to_be_one(read):
    with pytest.raises(ValueError, match=r"s\.tar is a tar of nothing"):
        read(bytes(10240))


def test_members_of_a_sample_that_are_not_read_are_said(read, picture):
    files = [("0.left.png", picture(0)), ("0.right.png", picture(1)), ("0.txt", b"a")]
    labelled = [("1.png", picture(1)), ("1.txt", b"b"), ("1.cls", b"cat")]
    source = read(tar(files + labelled))
    assert [sample.image for sample in source] == [picture(0), picture(1)]
    assert any("several images" in note for note in source.notes)
    assert any("cls is no number" in note for note in source.notes)
    assert not read(tar(labelled[:2])).notes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"message": "rate limited"}', "is no tar$"),
        (b"PAR1" + bytes(600), "is a Parquet file"),
        (b"\x04\x22\x4d\x18" + bytes(600), "compressed with lz4"),
    ],
)
def test_other_files_in_place_of_a_shard_are_called_what_they_are(read, data, message):
    with pytest.raises(ValueError, match=message):
        read(data)


def test_of_several_images_the_one_of_the_text_is_read(read, picture):
    source = read(tar([("1.5.png", picture(0)), ("1.6.png", picture(1)), ("1.6.txt", b"a")]))
    assert [(sample.image, sample.captions) for sample in source] == [(picture(1), ("a",))]
    assert any("several images" in note for note in source.notes)


def test_texts_of_a_sample_that_are_not_read_are_said(read, picture):
    files = [("0.en.txt", b"one"), ("0.fr.txt", b"un"), ("0.json", b"{}"), ("0.png", picture(0))]
    source = read(tar(files))
    assert source[0].captions == ("one",)
    assert any("several texts, of which one is read" in note for note in source.notes)
    source = read(tar(files), caption_column="en.txt,fr.txt")
    assert source[0].captions == ("one", "un") and not source.notes


def test_a_shard_that_is_cut_off_in_its_first_sample_is_lost_and_no_reason_to_refuse(
    read, picture, tmp_path, settings
):
    data = tar(pairs(picture, "ab"))
    read(data, "0.tar")
    (tmp_path / "1.tar").write_bytes(data[:560])
    source = open_source(f"tar:{tmp_path}/{{0,1}}.tar", "train", settings())
    assert source.lost == 1 and source[1].captions == ("picture number 1",)
    with pytest.raises(BadSample, match="truncated-tar"):
        source[2]


def test_folders_with_more_shards_are_named(read, picture, tmp_path, settings):
    data = tar(pairs(picture, "ab"))
    read(data, "below/1.tar")
    with pytest.raises(
        FileNotFoundError, match=rf"ends in \.tar: 1 folders.*{tmp_path}/\*/\*\.tar"
    ):
        open_source(f"tar:{tmp_path}", "train", settings())
    read(data, "0.tar")
    (note,) = open_source(f"tar:{tmp_path}", "train", settings()).notes
    assert f"not looked into, such as {tmp_path}/below" in note
