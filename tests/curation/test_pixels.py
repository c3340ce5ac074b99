"""Embeddings propose copies and pixels confirm them: pictures that are near and differ are kept."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from clip_jax.cli import main as cli
from clip_jax.cli.main import main
from clip_jax.collection.embeddings import open_embeddings
from clip_jax.config import DataConfig
from clip_jax.curation.collection import EmbeddedSource, EvaluationSet
from clip_jax.curation.filter import FilterConfig, decide
from clip_jax.curation.on_beam import decide_on_beam
from clip_jax.curation.pixels import Pixels, check, coarse, coarse_similarity, reduce, similarity
from clip_jax.curation.report import borders
from clip_jax.curation.vectors import ArrayRows
from clip_jax.data.samples import BadSample, Sample
from clip_jax.data.sources.registry import open_source

ABOVE = FilterConfig(score_above=0).pixels_above
PICTURES, COPIES = 60, range(20, 30)
SOURCE = f"drawn_source.of:Drawn:{PICTURES}"


def drawing(seed: int, size: int = 96) -> Image.Image:
    """Figures of random colors at random places, on a shaded ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:48j, 0:1:48j]
    pixels = np.stack([rng.uniform(40, 90) + 90 * (x if c % 2 else y) for c in range(3)], axis=2)
    for _ in range(5):
        inside = np.hypot(x - rng.uniform(), y - rng.uniform()) < rng.uniform(0.08, 0.25)
        pixels[inside] = rng.uniform(0, 255, 3)
    return Image.fromarray(pixels.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cut(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    return image.crop((left, top, image.width - right, image.height - bottom))


def framed(image: Image.Image, x: int, y: int) -> Image.Image:
    out = Image.new("RGB", (image.width + 2 * x, image.height + 2 * y))
    out.paste(image, (x, y))
    return out


CHANGES = {
    "encoded again": lambda image: jpeg(image, 40),
    "smaller": lambda image: image.resize((29, 29), Image.Resampling.BICUBIC),
    "other shape": lambda image: image.resize((120, 70)),
    "cropped by 4 % at each side": lambda image: cut(image, 4, 4, 4, 4),
    "cropped by 10 % at one side": lambda image: cut(image, 0, 0, 10, 0),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "of less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "in a frame": lambda image: framed(image, 9, 9),
}


def similar(one: Image.Image, other: Image.Image) -> float:
    a, b = (reduce(np.asarray(image))[None] for image in (one, other))
    assert similarity(a, b) == similarity(b, a)
    rough = coarse_similarity(*(np.stack([coarse(x[:, k]) for k in range(2)], 1) for x in (a, b)))
    return float(similarity(a, b)[0] if rough[0] >= ABOVE - 0.4 else rough[0])


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_similar(change):
    for seed in range(6):
        picture = drawing(seed)
        assert similar(picture, CHANGES[change](picture)) >= ABOVE, seed


def test_pictures_that_differ_are_not():
    pictures = [drawing(seed) for seed in range(12)]
    pairs = [(one, other) for n, one in enumerate(pictures) for other in pictures[:n]]
    assert max(similar(*pair) for pair in pairs) < 0.9
    turned = pictures[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert similar(pictures[0], turned) < 0.9
    red, blue = (Image.new("RGB", (40, 40), color) for color in ("red", "blue"))
    assert similar(red, blue) < 0.5 and similar(red, red) == pytest.approx(1)


class Drawn:
    """Drawings, of which some are copies of others, and number 40 cannot be read any more."""

    broken = True

    def __init__(self, length: str, split: str, cfg: DataConfig):
        self._length, self.fingerprint = int(length), f"{length:0>16}"

    def __len__(self):
        return self._length

    def __getitem__(self, number):
        if number == 40 and self.broken:
            raise BadSample("missing-file", key="p/40", shard="p")
        copies = number in COPIES
        image = drawing(number - 20 if copies else number)
        file = io.BytesIO()
        (CHANGES["smaller"](image) if copies else image).save(file, "PNG")
        return Sample(file.getvalue(), (f"picture {number}",), key=f"p/{number}", shard="p")


@pytest.fixture
def embedded(vectors, near, write_embeddings, tmp_path, monkeypatch):
    """Rows 20 to 39 are near to 0 to 19 by embeddings, and copies up to 29. A test set has 0 to 9."""
    monkeypatch.setitem(sys.modules, "drawn_source.of", sys.modules[__name__])
    monkeypatch.setattr(cli, "_cache_compiled_programs", lambda: None)
    monkeypatch.setattr(Drawn, "broken", False)
    rng, image = np.random.default_rng(0), vectors(PICTURES, 64)
    image[20:40] = near(image[:20], 0.96, rng)
    source = open_source(SOURCE, "train", DataConfig())
    test = open_source("drawn_source.of:Drawn:10", "train", DataConfig())
    write_embeddings(tmp_path / "e", source, np.arange(PICTURES), image=image)
    write_embeddings(tmp_path / "t", test, np.arange(10), image=near(image[:10], 0.97, rng))
    collection = EmbeddedSource(open_embeddings(tmp_path / "e"), source)
    return collection, EvaluationSet(str(tmp_path / "t"), "m")


CFG = FilterConfig(duplicates_above=0.9, against=("t",), against_above=0.9)


def decided(collection, test, mesh, cfg=CFG, **more):
    pixels = {"pixels": collection.pixels(DataConfig())}
    pixels["evaluation_pixels"] = {"t": test.pixels(DataConfig())}
    return decide(collection, cfg, mesh, evaluation={"t": test.rows}, **pixels, **more)


@pytest.mark.parametrize("clustered", [False, True])
def test_what_is_near_and_differs_is_kept(embedded, mesh, clustered):
    only = FilterConfig(duplicates_above=0.9)
    clusters = np.zeros((PICTURES, 1), np.int32) if clustered else None
    found = decided(*embedded, mesh(2), only, clusters_NC=clusters).decisions[0]
    assert found.dropped_N.tolist() == [*COPIES]
    assert found.partner_N[20:40].tolist() == [*range(20)]
    assert (found.pixels_N[20:30] >= ABOVE).all() and (found.pixels_N[30:40] < ABOVE).all()
    dropped, kept = borders(found, 4)  # those whose pixels are nearest to the border
    assert set(kept) <= set(range(30, 40)) and set(dropped) <= set(COPIES)
    assert (np.diff(found.pixels_N[kept]) <= 0).all() and (
        np.diff(found.pixels_N[dropped]) >= 0
    ).all()
    alone = FilterConfig(duplicates_above=0.9, pixels_above=None)
    assert decide(embedded[0], alone, mesh(2)).decisions[0].dropped_N.tolist() == [*range(20, 40)]


def test_a_test_set_is_compared_by_pixels(embedded, mesh):
    evaluation, duplicates = decided(*embedded, mesh(1)).decisions
    assert evaluation.dropped_N.tolist() == [*range(10), *COPIES]
    assert duplicates.dropped_N.tolist() == []


def test_beam_confirms_the_same(embedded, mesh, tmp_path):
    collection, test = embedded
    options = {"block": 25, "options": ["--runner=DirectRunner"]}
    for cfg in (CFG, FilterConfig(duplicates_above=0.9)):
        sets = [test] if cfg.against else []
        folder = str(tmp_path / f"beam{len(sets)}")
        beam = decide_on_beam(collection, cfg, sets, None, folder, **options)
        here = decided(collection, test, mesh(1), cfg)
        for one, other in zip(here.decisions, beam.decisions, strict=True):
            assert one.dropped_N.tolist() == other.dropped_N.tolist()
            at = one.dropped_N
            np.testing.assert_array_equal(one.partner_N[at], other.partner_N[at])
            np.testing.assert_allclose(one.pixels_N[at], other.pixels_N[at], atol=1e-6)


def test_pictures_are_needed_unless_embeddings_decide_alone(embedded, mesh):
    collection, test = embedded
    with pytest.raises(ValueError, match="pixels_above needs the pictures"):
        decide(collection, FilterConfig(duplicates_above=0.9), mesh(1))
    test.source = None
    with pytest.raises(ValueError, match=r"cannot be read, which confirm .* --pixels-above None"):
        test.pixels(DataConfig())
    with pytest.raises(ValueError, match="duplicates_above is None and against is empty"):
        FilterConfig(score_above=0.1, pixels_above=0.9)


def test_a_picture_that_cannot_be_read_is_kept_and_counted(embedded, monkeypatch):
    collection, _ = embedded
    monkeypatch.setattr(Drawn, "broken", True)
    pixels = collection.pixels(DataConfig())
    compared = check(pixels, pixels, ABOVE).similar(np.array([40, 20]), np.array([20, 0]))
    assert np.isnan(compared[0]) and compared[1] >= ABOVE and pixels.unreadable == 1
    none = [Sample(b"", (), key="a", shard="s")] * 3
    with pytest.raises(ValueError, match=r"3 pictures that were embedded cannot be read now"):
        source = open_source(SOURCE, "train", DataConfig())
        monkeypatch.setattr(Drawn, "__getitem__", lambda self, number: none[0])
        Pixels(source, np.arange(3), DataConfig()).read(np.arange(3))


def test_the_command_shows_what_pixels_refused(embedded, tmp_path, capsys):
    arguments = ["--embeddings", str(tmp_path / "e"), "--duplicates-above", "0.9"]
    out = tmp_path / "out"
    assert main(["data", "filter", SOURCE, str(out), *arguments]) == 0
    assert "duplicates: 10 of 60 dropped" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count(", pixels 0.") >= 20 and f"or pixels below {ABOVE}" in page
    alone = [str(tmp_path / "alone"), *arguments, "--pixels-above", "None"]
    assert main(["data", "filter", SOURCE, *alone]) == 0
    assert "duplicates: 20 of 60 dropped" in capsys.readouterr().out
    assert ", pixels 0." not in (tmp_path / "alone" / "report.html").read_text()


def test_rows_in_memory_are_compared(vectors, near, mesh):
    """Of several near rows the nearest confirmed one is the partner."""

    class Pairs:
        image, text = ArrayRows(vectors(4)), None

        def __len__(self):
            return 4

    z = vectors(4)
    z[1], z[2] = (
        near(z[:1], 0.99, np.random.default_rng(0)),
        near(z[:1], 0.97, np.random.default_rng(1)),
    )
    Pairs.image = ArrayRows(z)
    pictures = [drawing(0), drawing(1), CHANGES["brighter"](drawing(0)), drawing(3)]

    class Source:
        name = "memory"

        def __getitem__(self, number):
            file = io.BytesIO()
            pictures[number].save(file, "PNG")
            return Sample(file.getvalue(), (), key=str(number), shard="s")

    pixels = Pixels(Source(), np.arange(4), DataConfig())
    found = decide(Pairs(), FilterConfig(duplicates_above=0.9), mesh(1), pixels=pixels).decisions[0]
    assert found.dropped_N.tolist() == [2] and found.partner_N[2] == 0
    assert found.pixels_N[1] < ABOVE and found.partner_N[1] == 0
