"""With a decoder on a device, batches are those of the CPU but for the pixels that it makes."""

import dataclasses
import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import AugmentConfig, DataConfig, PreprocessConfig
from clip_jax.data import device_decode, loader
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.device_decode import DecodeError, in_calls, is_for_device
from clip_jax.data.images.pixels import TURNS, stored_box, turn, turned_size
from clip_jax.data.images.transforms import ORIENTATION, ImageError, draw_crop
from clip_jax.data.samples import Sample
from clip_jax.registry import InvalidSetting

MANY = 10_000_000
AUGMENT = AugmentConfig(
    crop_scale=(0.3, 0.9), flip=True, color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale_prob=0.3
)


def photo(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found


def spoiled(data: bytes) -> bytes:
    """Whole by its end, with damage among the coded pixels that the CPU's decoder reports."""
    return data[: len(data) * 2 // 3] + data[-2:]


DAMAGED = {"truncated": encoded(photo(1))[:-40], "spoiled": spoiled(encoded(photo(2)))}
FILES = [
    *(encoded(photo(number), exif=exif(number)) for number in range(1, 9)),
    *(encoded(photo(number), "PNG") for number in range(10, 14)),
    encoded(photo(20).convert("L")),
    encoded(photo(21), keep_rgb=True),
    encoded(photo(22)) + b"what a camera adds",
    encoded(photo(23)) + bytes(30),
    b"<html>",
    encoded(photo(24), "PNG")[:-60],
    *DAMAGED.values(),
]


@dataclasses.dataclass(frozen=True)
class Files:
    """A sample for each of FILES, with two captions."""

    name = "files"
    fingerprint = "files"

    def __len__(self):
        return len(FILES)

    def __getitem__(self, index):
        return Sample(FILES[index], ("one", "two"), key=f"f/{index}", shard=f"s-{index % 2}")


class StandIn:
    """A decoder that makes the CPU's pixels, and fails as a whole where one of its files does."""

    def __init__(self):
        self.calls, self.failures = [], 0

    def __call__(self, crops):
        self.calls.append(len(crops))
        assert all(is_for_device(crop) for crop in crops)
        try:
            found = [c.picture.resized(c.box, c.size, c.interpolation, c.resizer) for c in crops]
        except ImageError as error:
            self.failures += 1
            raise DecodeError("one of the files") from error
        return np.stack(found)


@pytest.fixture
def read(reading, settings, monkeypatch):
    """What some batches are, and the counts of bad samples."""

    def _read(decoders=(), *, steps=8, source=Files(), start_step=0, **changes):
        monkeypatch.setattr(loader, "open_decoders", lambda *_: list(decoders))
        decode = "gpu" if decoders else "cpu"
        cfg = settings(decode=decode, max_bad_share=1.0, batch_size=16, **changes)
        bad = BadSamples()
        with loader.train_batches(
            source, cfg=cfg, seed=3, start_step=start_step, bad_samples=bad, **reading
        ) as batches:
            return [next(batches) for _ in range(steps)], bad.to_json()

    return _read


def assert_equal(found, expected):
    for one, other in zip(found[0], expected[0], strict=True):
        for name in ("image", "tokens"):
            np.testing.assert_array_equal(one[name], other[name])
    assert found[1] == expected[1]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("decoders", [1, 3])
def test_only_where_pixels_are_made_differs(read, monkeypatch, turned, decoders):
    monkeypatch.setattr(device_decode, "MOST_ROWS", 3)
    stand_ins = [StandIn() for _ in range(decoders)]
    how = {"augment": AUGMENT, "exif_rotation": turned}
    expected = read(**how)
    assert_equal(read(stand_ins, **how), expected)
    assert expected[1]["by_reason"].keys() >= {"truncated-jpeg", "html-instead-of-image"}
    assert all(one.failures for one in stand_ins) and all(3 in one.calls for one in stand_ins)
    assert sum(sum(one.calls) for one in stand_ins) > 8 * 16 / 3


def test_a_resumed_run_goes_on_with_the_same_batches(read):
    images = [batch["image"] for batch in read([StandIn()], augment=AUGMENT)[0]]
    resumed = read([StandIn()], augment=AUGMENT, start_step=5, steps=3)[0]
    np.testing.assert_array_equal([batch["image"] for batch in resumed], images[5:])


def test_a_call_that_fails_costs_its_own_rows_alone(read, monkeypatch):
    class Inverted(StandIn):
        def __call__(self, crops):
            return 255 - super().__call__(crops)

    monkeypatch.setattr(device_decode, "MOST_ROWS", 3)
    decoder = Inverted()
    (cpu, bad), (gpu, same_bad) = read(steps=3), read([decoder], steps=3)
    assert bad == same_bad and decoder.failures
    is_cpu = np.array([(a["image"] == b["image"]).all((1, 2, 3)) for a, b in zip(cpu, gpu)])
    is_gpu = np.array([(a["image"] == 255 - b["image"]).all((1, 2, 3)) for a, b in zip(cpu, gpu)])
    np.testing.assert_array_equal(is_cpu, ~is_gpu)
    assert is_gpu.any() and is_cpu.any()


def test_a_decoder_that_is_broken_ends_the_run(read):
    def broken(crops):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        read([broken])


def crop_of(data: bytes, **preprocess):
    how = PreprocessConfig(**preprocess)
    return draw_crop(data, np.random.default_rng(0), AUGMENT, how, 8, MANY)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(photo(0)), True),
        (encoded(photo(0).convert("L")), True),
        (encoded(photo(0), progressive=True), True),
        (encoded(photo(0)) + bytes(30), True),
        (DAMAGED["truncated"], False),
        (DAMAGED["truncated"] + bytes(30), False),
        (encoded(photo(0)) + b"what a camera adds", False),
        (encoded(photo(0), keep_rgb=True), False),
        (encoded(photo(0).convert("CMYK")), False),
        (encoded(photo(0), "PNG"), False),
    ],
)
def test_a_device_gets_whole_files_that_all_decoders_read_alike(data, expected):
    assert is_for_device(crop_of(data)) is expected


@pytest.mark.parametrize("orientation", TURNS)
def test_a_box_of_the_turned_image_is_found_in_the_stored_one(orientation):
    stored_HWC = np.arange(5 * 7 * 3).reshape(5, 7, 3)
    left, top, right, bottom = box = (1, 0, 3, 4)
    turned_HWC = turn(stored_HWC, orientation)[top:bottom, left:right]
    left, top, right, bottom = stored_box(box, turned_size((7, 5), orientation), orientation)
    np.testing.assert_array_equal(turn(stored_HWC[top:bottom, left:right], orientation), turned_HWC)


def test_a_call_is_bounded_by_rows_and_by_pixels(monkeypatch):
    monkeypatch.setattr(device_decode, "MOST_ROWS", 3)
    monkeypatch.setattr(device_decode, "MOST_PIXELS", 100)
    small = crop_of(encoded(photo(0)))
    sides = {2: 1, 3: 9, 5: 5, 6: 20, 7: 1, 8: 1, 9: 1, 11: 1}
    crops = {row: dataclasses.replace(small, box=(2, 1, 2 + s, 1 + s)) for row, s in sides.items()}
    assert list(in_calls(crops, 1)) == [[2, 3], [5], [6], [7, 8, 9], [11]]
    assert list(in_calls({}, 2)) == []


def test_each_device_has_a_part_of_a_small_batch():
    crops = dict.fromkeys(range(10), crop_of(encoded(photo(0))))
    assert list(in_calls(crops, 1)) == [list(range(10))]
    assert [len(rows) for rows in in_calls(crops, 4)] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 2}, r"data.workers=2 has no effect, as data.decode=gpu"),
        ({"augment": AugmentConfig(resize="fast")}, r"data.decode='gpu' .* data.augment.resize"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(changes, message):
    DataConfig(**changes)
    with pytest.raises(InvalidSetting, match=message):
        DataConfig(decode="gpu", **changes)


def test_a_machine_without_dali_or_without_a_gpu_is_refused_with_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match=r"needs DALI .*'\.\[gpu-decode\]'.* leave it at cpu"):
        device_decode.find_gpus()
    for name in ("nvidia", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(ValueError, match="needs NVIDIA GPUs, not cpu"):
        device_decode.find_gpus()


def test_a_gpu_on_which_dali_does_not_start_is_named_and_each_has_its_share_of_threads(monkeypatch):
    made = []

    def dali(gpu, image_size, interpolation, *, threads):
        if gpu == 3:
            raise RuntimeError("pipeline " * 99 + "cudaErrorMemoryAllocation")
        made.append((gpu, image_size, interpolation, threads))

    monkeypatch.setattr(device_decode, "Dali", dali)
    monkeypatch.setattr(device_decode, "find_gpus", lambda: [0, 2])
    device_decode.open_decoders(224, "bicubic", 9)
    assert made == [(0, 224, "bicubic", 4), (2, 224, "bicubic", 4)]
    monkeypatch.setattr(device_decode, "find_gpus", lambda: [0, 3])
    with pytest.raises(ValueError, match=r"GPU 3 .*cudaErrorMemoryAllocation.*MEM_FRACTION"):
        device_decode.open_decoders(224, "bicubic", 1)
