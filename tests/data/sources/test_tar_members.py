"""Headers are read as tarfile reads them, and past damage where it does not."""

import io
import tarfile

import pytest

from clip_jax.data.sources.tar_members import BLOCK, members, split_name


def make(files, format=tarfile.USTAR_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return bytearray(file.getvalue())


def read(data, damage=None):
    found = members(lambda a, b: bytes(data[a:b]), 0, len(data), on_damage=damage)
    return {member.name: bytes(data[member.data : member.data + member.size]) for member in found}


FILES = {"a/1.jpg": b"x" * 700, "a/1.txt": b"one", "a/2.jpg": b"", "é.txt": b"y" * 512}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", ["", "d" * 90 + "/" + "n" * 90, "n" * 95 + "é" * 100])
def test_every_format_and_length_of_name_is_read(format, long):
    if long and format == tarfile.USTAR_FORMAT and "é" in long:
        long = "d" * 120 + "/e"
    files = {**FILES, f"{long}.jpg": b"z" * 10}
    assert read(make(files, format)) == files


def test_folders_are_passed_over_and_links_have_no_bytes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f.txt").write_text("hi")
    (tmp_path / "d" / "l.txt").symlink_to("f.txt")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "d", "d")
    assert read((tmp_path / "t.tar").read_bytes()) == {"d/f.txt": b"hi", "d/l.txt": b""}


def test_the_end_of_a_whole_tar_is_no_damage():
    damage = []
    read(make(FILES), damage.append)
    assert damage == []


@pytest.mark.parametrize("spoil", [lambda block: bytes(BLOCK), lambda block: b"\x01" + block[1:]])
def test_what_follows_a_damaged_header_is_found(spoil):
    data, damage = make(FILES), []
    place = data.index(b"a/1.txt")
    data[place : place + BLOCK] = spoil(bytes(data[place : place + BLOCK]))
    assert set(read(data, damage.append)) == set(FILES) - {"a/1.txt"}
    assert damage == [place]
    with tarfile.open(fileobj=io.BytesIO(bytes(data)), ignore_zeros=False) as tar:
        assert len(tar.getnames()) < 3  # which is why tarfile is not used


@pytest.mark.parametrize(
    "record",
    [
        b"0 path=",
        b"x1 path=",
        b"9999 path=",
        b"-5 path=",
        b"12 \xff\xfe=a\n\n",
        b"30 path",
        b" " * 9,
    ],
)
def test_a_damaged_pax_header_costs_the_file_that_it_names(record):
    name = "n" * 120
    data, damage = make({"a.txt": b"1", f"{name}.jpg": b"2", "b.txt": b"3"}, tarfile.PAX_FORMAT), []
    place = data.index(b"path=" + b"n" * 120) - 4
    data[place : place + len(record)] = record
    assert read(data, damage.append) == {"a.txt": b"1", "b.txt": b"3"}
    assert damage == [place - BLOCK]


@pytest.mark.parametrize("size", [b"-0000001000", b"77777777777"])
def test_a_damaged_size_ends_in_a_report_and_not_in_a_loop(size):
    data, damage = make({"a.txt": b"1", "n" * 120: b"2"}, tarfile.GNU_FORMAT), []
    place = 2 * BLOCK
    data[place + 124 : place + 124 + len(size)] = size
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + BLOCK])
    assert "a.txt" in read(data, damage.append)
    assert damage == [place]


def test_sizes_above_eight_gigabytes_are_read():
    data = make({"a.bin": b""}, tarfile.GNU_FORMAT)
    info = tarfile.TarInfo("a.bin")
    info.size = 9 << 30
    data[:BLOCK] = info.tobuf(tarfile.GNU_FORMAT)
    found = next(members(lambda a, b: bytes(data[a:b]), 0, len(data)))
    assert found.size == 9 << 30


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("00/12.jpg", ("00/12", "jpg")),
        ("a.b/1.seg.PNG", ("a.b/1", "seg.png")),
        ("noextension", None),
        (".hidden", None),
        ("d/.DS_Store", None),
    ],
)
def test_names_are_split_at_the_first_dot_of_the_file(name, expected):
    assert split_name(name) == expected
