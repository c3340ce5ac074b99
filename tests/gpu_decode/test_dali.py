"""DALI makes the pixels of the CPU's path but for rounding, and what it cannot decode is found out."""

import dataclasses
import io

import numpy as np
import pytest
from nvidia.dali import Pipeline
from PIL import Image

from clip_jax.config import AugmentConfig, DataConfig, PreprocessConfig
from clip_jax.data import device_decode, loader
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.device_decode import Dali, DecodeError, is_for_device
from clip_jax.data.images.transforms import ORIENTATION, ImageError, draw_crop
from clip_jax.data.samples import Sample

MANY = 10_000_000
AUGMENT = AugmentConfig(crop_scale=(0.3, 0.9))
SIZE = 96


def photo(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, *, orientation: int = 1, **options) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(file, "JPEG", quality=90, exif=exif, **options)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def without_quantization(data: bytes) -> bytes:
    """A file with a sound header and a sound end of which nobody can decode a pixel."""
    while (start := data.find(b"\xff\xdb")) >= 0:
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        data = data[:start] + data[start + 2 + length :]
    return data


KINDS = {
    **{f"turned {number}": jpeg(photo(number), orientation=number) for number in range(1, 9)},
    "4:4:4": jpeg(photo(9), subsampling="4:4:4"),
    "4:2:2": jpeg(photo(10), subsampling="4:2:2"),
    "progressive": jpeg(photo(11), progressive=True),
    "restarts": jpeg(photo(12), restart_marker_blocks=4),
    "grey": jpeg(photo(13).convert("L")),
    "odd size": jpeg(photo(14, 241, 319)),
    "smaller than the crop": jpeg(photo(15, 50, 40)),
    "zeros behind the end": jpeg(photo(16)) + bytes(100),
}
WHOLE = jpeg(photo(20))
# What is missing lies among the coded pixels: the file has its header and its end.
SPOILED = WHOLE[: len(WHOLE) // 2] + WHOLE[-2:]


def crop_of(data: bytes, seed: int = 0, **preprocess):
    how = PreprocessConfig(exif_rotation=True, **preprocess)
    return draw_crop(data, np.random.default_rng(seed), AUGMENT, how, SIZE, MANY)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_the_cpu_path_but_for_rounding(interpolation):
    decoder = Dali(None, SIZE, interpolation, threads=2)
    for seed in range(4):
        crops = [crop_of(data, seed, interpolation=interpolation) for data in KINDS.values()]
        assert all(is_for_device(crop) for crop in crops)
        for kind, crop, pixels_HWC in zip(KINDS, crops, decoder(crops), strict=True):
            off = np.abs(pixels_HWC.astype(int) - crop.pixels())
            assert off.mean() < 0.3 and off.max() <= 4, (kind, off.mean(), off.max())


def test_the_nearest_pixel_is_the_same_one():
    crop = crop_of(KINDS["4:4:4"], interpolation="nearest")
    (pixels_HWC,) = Dali(None, SIZE, "nearest", threads=1)([crop])
    assert (pixels_HWC == crop.pixels()).mean() > 0.95


def test_on_a_gpu_files_come_from_the_host_and_crops_stay_on_the_device(monkeypatch):
    """The graph alone: DALI builds none without a GPU's driver."""
    graphs = []
    monkeypatch.setattr(Pipeline, "build", lambda *_: None)
    monkeypatch.setattr(Pipeline, "set_outputs", lambda pipeline, out: graphs.append(out))
    monkeypatch.setattr(Dali, "_run", lambda *_: None)
    Dali(3, SIZE, "bicubic", threads=2)
    (resized,) = graphs
    (crops,) = resized.source.inputs
    assert resized.device == crops.device == "gpu"
    assert {each.device for each in crops.source.inputs} == {"cpu"}


def test_a_file_that_it_refuses_fails_the_call_and_the_next_one_works():
    decoder = Dali(None, SIZE, "bicubic", threads=2)
    sound, broken = crop_of(WHOLE), crop_of(without_quantization(WHOLE))
    assert is_for_device(broken)
    with pytest.raises(ImageError, match="corrupt-jpeg"):
        broken.pixels()
    outside = dataclasses.replace(sound, box=(0, 0, 9, 999))
    expected = decoder([sound])
    for refused in (broken, outside, broken):
        with pytest.raises(DecodeError):
            decoder([sound, refused])
        np.testing.assert_array_equal(decoder([sound]), expected)


def test_damage_among_the_coded_pixels_is_found_by_the_cpu_path_alone():
    """The limit that docs/data.md states: should it fall, that page can be mended."""
    with pytest.raises(ImageError, match="truncated-jpeg"):
        crop_of(SPOILED).pixels()
    assert is_for_device(crop_of(SPOILED))
    assert Dali(None, SIZE, "bicubic", threads=2)([crop_of(SPOILED)]).shape == (1, SIZE, SIZE, 3)


@dataclasses.dataclass(frozen=True)
class Files:
    """All kinds of files, and bad ones."""

    files: tuple
    name = "files"
    fingerprint = "files"

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Sample(self.files[index], ("a caption",), key=f"f/{index}", shard="s")


@dataclasses.dataclass(frozen=True)
class Lengths:
    context_length: int = 4

    def __call__(self, texts, rng=None, mask="truncate"):
        return np.full((len(texts), self.context_length), rng.integers(1000), np.int32)


def test_batches_have_the_rows_and_the_bad_samples_of_the_cpu_path(monkeypatch):
    bad = (WHOLE[:-50], without_quantization(WHOLE), png(photo(31))[:-99], b"<html>")
    good = (png(photo(30)), jpeg(photo(32), keep_rgb=True), WHOLE + b"a camera's")
    source = Files((*KINDS.values(), *bad, *good))
    decoders = [Dali(None, SIZE, "bicubic", threads=1) for _ in range(2)]
    monkeypatch.setattr(loader, "open_decoders", lambda *_: decoders)
    monkeypatch.setattr(device_decode, "MOST_ROWS", 8)
    augment = dataclasses.replace(AUGMENT, flip=True, color_jitter=(0.2, 0.2, 0.2, 0.0))
    found = {}
    for decode in ("cpu", "gpu"):
        cfg = DataConfig(
            decode=decode, batch_size=32, threads=2, augment=augment, max_bad_share=1.0
        )
        counts = BadSamples()
        with loader.train_batches(
            source,
            Lengths(),
            cfg,
            image_size=SIZE,
            preprocess=PreprocessConfig(exif_rotation=True),
            seed=0,
            bad_samples=counts,
        ) as batches:
            found[decode] = [next(batches) for _ in range(6)], counts.to_json()
    (cpu, cpu_bad), (gpu, gpu_bad) = found["cpu"], found["gpu"]
    assert gpu_bad == cpu_bad and len(cpu_bad["by_reason"]) == len(bad)
    for one, other in zip(cpu, gpu, strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
        off_B = np.abs(one["image"].astype(int) - other["image"]).mean((1, 2, 3))
        assert off_B.max() < 0.5 and off_B.any()
