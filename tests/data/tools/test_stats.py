"""The summary counts what was put in."""

import io

import pytest
from PIL import Image

from clip_jax.data.sources.registry import open_source
from clip_jax.data.tools.stats import summarize


@pytest.fixture
def source(tmp_path, write_tar, encode, settings):
    files = {}
    for number in range(8):
        files[f"{number}.jpg"] = encode((number * 9, 0, 0), size=(20 + number, 10), kind="JPEG")
        files[f"{number}.txt"] = b"x" * (10 + number)
    files |= {"8.png": encode((1, 2, 3)), "8.txt": b"same"}
    files |= {"9.png": encode((1, 2, 3)), "9.txt": b"same"}
    files |= {"a.jpg": files["0.jpg"][:100], "a.txt": b"cut"}
    files |= {"b.jpg": files["0.jpg"]}
    path = write_tar(tmp_path / "s.tar", files)
    return open_source(f"tar:{path}", "train", settings())


def test_everything_is_counted(source, settings):
    found = summarize(source, settings())
    assert (found.samples, found.looked_at) == (12, 12)
    assert found.formats == {"JPEG": 8, "PNG": 2}
    assert sum(found.unreadable.values()) == 2 and found.unreadable["missing-caption"] == 1
    assert (found.duplicate_images, found.duplicate_captions) == (1, 1)
    assert (found.width[0], found.width[-1]) == (8, 27) and found.height[-1] == 10
    assert found.caption_characters[0] == 4 and found.caption_characters[-1] == 17
    text = found.to_text()
    assert "1 missing-caption" in text and "s.tar/a" in text


def test_a_part_is_taken_from_everywhere(numbered, settings):
    touched = []

    class Watched(numbered):
        def __getitem__(self, index):
            touched.append(index)
            return super().__getitem__(index)

    assert summarize(Watched(1000), settings(), max_samples=10).looked_at == 10
    assert sorted(touched) == list(range(0, 1000, 100))


def test_a_source_with_nothing_readable_is_still_described(numbered, settings):
    found = summarize(numbered(5, frozenset(range(5))), settings())
    assert found.unreadable == {"out-of-sorts": 5} and found.formats == {}
    assert "5 out-of-sorts" in found.to_text()


def test_images_that_are_to_be_turned_are_counted(tmp_path, write_tar, settings):
    files = {}
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(1, 9):
            exif, file = Image.Exif(), io.BytesIO()
            exif[0x0112] = orientation
            Image.new("RGB", (24, 16)).save(file, kind, exif=exif)
            files[f"{kind}{orientation}.{kind.lower()}"] = file.getvalue()
            files[f"{kind}{orientation}.txt"] = b"a caption"
    path = write_tar(tmp_path / "s.tar", files)
    found = summarize(open_source(f"tar:{path}", "train", settings()), settings())
    assert sum(found.formats.values()) == 32
    assert found.rotated == 3 * 7  # Pillow turns a TIFF in any case
    assert "21 (data.exif_rotation)" in found.to_text()
