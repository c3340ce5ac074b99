"""Batches whose JPEGs NVIDIA's DALI decodes, crops and resizes, on the GPUs of this process.

All else of a row is as in `batches`: what is read and drawn, other formats, the bad samples. An
error of DALI names no row and ends its pipeline, so that the rows of that call are then made as
`data.decode=cpu` makes them, which finds the bad one and its substitute.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
import simplejpeg
from absl import logging

from clip_jax.config import Interpolation
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.batches import AHEAD, ThreadBatches
from clip_jax.data.dataset import TrainDataset, fill
from clip_jax.data.images.pixels import stored_box, turn
from clip_jax.data.images.transforms import Jpeg, TrainCrop
from clip_jax.data.samples import BadSample

MOST_ROWS = 64  # of one call
MOST_PIXELS = 1 << 28  # of one call's crops, which take three bytes each of the GPU's memory
END_OF_IMAGE = b"\xff\xd9"  # which the coded pixels never hold
PROBE = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))  # what any decoder can decode
SPACES = ("Gray", "YCbCr")  # of RGB it is said in an Adobe marker, which not all decoders read

Decoder = Callable[[Sequence[TrainCrop]], np.ndarray]  # (crops, H, W, C) uint8, before `finished`


class DecodeError(Exception):
    """A call of a decoder failed, by one of its files; the next one may work."""


def find_gpus() -> list[int]:
    """CUDA's numbers of the GPUs that this process computes on.

    Raises:
      ValueError: there are none, or DALI is not installed.
    """
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"data.decode=gpu needs DALI ({error}): pip install -e '.[gpu-decode]' on Linux, or "
            "leave it at cpu"
        ) from error
    devices = jax.local_devices()
    if devices[0].platform != "gpu":
        kind = devices[0].device_kind
        raise ValueError(f"data.decode=gpu needs NVIDIA GPUs, not {kind}: leave it at cpu")
    return [device.local_hardware_id for device in devices]


def open_decoders(image_size: int, interpolation: Interpolation, threads: int) -> list[Decoder]:
    """One for each GPU; `threads` are shared among them.

    Raises:
      ValueError: as `find_gpus`, or DALI does not work on one of them.
    """
    gpus = find_gpus()
    decoders = []
    for gpu in gpus:
        try:
            each = max(1, threads // len(gpus))
            decoders.append(Dali(gpu, image_size, interpolation, threads=each))
        except Exception as error:  # DALI raises errors of many kinds
            raise ValueError(
                f"data.decode=gpu: DALI cannot decode on GPU {gpu} ({_end(error)}). If memory is short, "
                "leave it more with XLA_PYTHON_CLIENT_MEM_FRACTION=0.7; data.decode=cpu needs none"
            ) from error
    return decoders


class Dali:
    """Decodes on one GPU, one call after another; `gpu` None: on the CPU, for tests.

    It is DALI's pipeline and not its dynamic mode, which is experimental.
    """

    def __init__(
        self, gpu: int | None, image_size: int, interpolation: Interpolation, *, threads: int
    ):
        self._gpu, self._threads, self._lock = gpu, threads, threading.Lock()
        self._size, self._interpolation = (image_size, image_size), interpolation
        self._start()

    def __call__(self, crops: Sequence[TrainCrop]) -> np.ndarray:
        """The crops, resized.

        Raises:
          DecodeError: for a file that it cannot decode.
          Exception: it can decode no file any more; what DALI raises.
        """
        boxes = [
            stored_box(crop.box, crop.picture.size, crop.picture.orientation) for crop in crops
        ]
        with self._lock:
            try:
                found = self._run([crop.picture.data for crop in crops], boxes)
            except Exception as error:  # of which kind depends on the operator that met it
                self._start()
                raise DecodeError(_end(error)) from error
        return np.stack([turn(p, crop.picture.orientation) for p, crop in zip(found, crops)])

    def _start(self):
        """A new pipeline, which is tried at once."""
        from nvidia.dali import Pipeline, fn, types

        kernel = {
            "bicubic": types.INTERP_CUBIC,
            "bilinear": types.INTERP_LINEAR,
            "nearest": types.INTERP_NN,
        }[self._interpolation]
        self._pipeline = Pipeline(
            batch_size=MOST_ROWS,
            num_threads=self._threads,
            device_id=self._gpu,
            prefetch_queue_depth=1,
        )
        with self._pipeline:
            files, starts, shapes = (
                fn.external_source(name=name) for name in ("files", "starts", "shapes")
            )
            crops = fn.decoders.image_slice(
                files,
                start=starts,
                shape=shapes,
                axis_names="WH",
                device="cpu" if self._gpu is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
                use_fast_idct=False,
                affine=False,  # else the threads of all processes sit on the same few cores
            )
            self._pipeline.set_outputs(
                fn.resize(crops, size=self._size, interp_type=kernel, antialias=True)
            )
        self._pipeline.build()
        self._run([PROBE, PROBE], [(0, 0, 16, 16), (4, 0, 16, 8)])

    def _run(self, files: list[bytes], boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
        start_N2, end_N2 = np.split(np.array(boxes, np.int32), 2, axis=1)
        self._pipeline.feed_input("files", [np.frombuffer(file, np.uint8) for file in files])
        self._pipeline.feed_input("starts", np.ascontiguousarray(start_N2))
        self._pipeline.feed_input("shapes", end_N2 - start_N2)
        (found,) = self._pipeline.run()
        return np.array(found.as_cpu().as_array())  # the next run writes into the same memory


class DeviceBatches(ThreadBatches):
    """Batches of a `TrainDataset` in which `decoders` make what `is_for_device` says.

    Threads read, draw and tokenize the rows of a batch; another one for each batch waits for them
    and has the crops decoded by one more for each decoder.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        step: int,
        end: int,
        *,
        decoders: Sequence[Decoder],
        threads: int,
        bad_samples: BadSamples,
        check: Callable[[BadSamples], None],
    ):
        counting = {"bad_samples": bad_samples, "check": check}
        super().__init__(dataset, step, end, threads=threads, **counting)
        self._decoders = decoders
        self._joining = ThreadPoolExecutor(AHEAD + 1, thread_name_prefix="join")
        self._decoding = ThreadPoolExecutor(len(decoders), thread_name_prefix="decode")

    def _ask(self, step: int):
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.spec.items()}
        parts = self._submit(self._draw, arrays, step)
        self._asked.append((arrays, [self._joining.submit(self._join, arrays, step, parts)]))

    def _draw(self, arrays: dict[str, np.ndarray], step: int, rows: range) -> list[dict]:
        """Rows whose images are `TrainCrop`s where a decoder is to make them, else written."""

        def finish(crop: TrainCrop) -> TrainCrop | np.ndarray:
            return crop if is_for_device(crop) else crop.pixels()

        found = [self._dataset.row(step * self._dataset.rows + row, finish) for row in rows]
        for row, one in zip(rows, found):
            arrays["tokens"][row] = one["tokens"]
            if not isinstance(one["image"], TrainCrop):
                arrays["image"][row] = one["image"]
        return found

    def _join(
        self, arrays: dict[str, np.ndarray], step: int, parts: list[Future]
    ) -> list[BadSample]:
        found = [row for part in parts for row in part.result()]
        bad = {row: one["bad"] for row, one in enumerate(found)}
        crops = {
            row: one["image"]
            for row, one in enumerate(found)
            if isinstance(one["image"], TrainCrop)
        }

        def write(rows: list[int], pixels_BHWC: np.ndarray):
            for row, pixels_HWC in zip(rows, pixels_BHWC):
                arrays["image"][row] = crops[row].finished(pixels_HWC)

        calls = [
            (rows, self._decoding.submit(decoder, [crops[row] for row in rows]))
            for rows, decoder in zip(
                in_calls(crops, len(self._decoders)), itertools.cycle(self._decoders)
            )
        ]
        written, again = [], {}
        for rows, call in calls:
            try:
                written.append(self._pool.submit(write, rows, call.result()))
            except DecodeError as error:
                message = "Decoding %d rows on the CPU, as a GPU could not: %s"
                logging.log_every_n_seconds(logging.WARNING, message, 60, len(rows), error)
                for row in rows:
                    again[row] = self._pool.submit(fill, arrays, self._dataset, step, [row])
        for one in written:
            one.result()
        bad |= {row: one.result() for row, one in again.items()}
        return [sample for row in range(len(found)) for sample in bad[row]]

    def _stop(self):
        super()._stop()
        for pool in (self._joining, self._decoding):
            pool.shutdown(cancel_futures=True)
        self._decoders = ()  # and with them their memory


def is_for_device(crop: TrainCrop) -> bool:
    """Whether a decoder on a device makes the pixels: of JPEGs that are whole, grey or YCbCr.

    It may paint grey what a truncated file lacks, so that a file must end as a JPEG does. Other
    bytes after the end are legal, but whether it is the end then only the CPU's decoder knows.
    """
    picture = crop.picture
    if not isinstance(picture, Jpeg) or picture.color_space not in SPACES:
        return False
    return picture.data.rstrip(b"\0").endswith(END_OF_IMAGE)


def in_calls(crops: dict[int, TrainCrop], parts: int) -> Iterator[list[int]]:
    """The rows in parts for so many decoders, none of them too large for one call."""
    most = min(MOST_ROWS, -(-len(crops) // parts))
    rows, pixels = [], 0
    for row, crop in crops.items():
        left, top, right, bottom = crop.box
        area = (right - left) * (bottom - top)
        if rows and (len(rows) == most or pixels + area > MOST_PIXELS):
            yield rows
            rows, pixels = [], 0
        rows.append(row)
        pixels += area
    if rows:
        yield rows


def _end(error: Exception) -> str:
    """What DALI says after the lines of the pipeline's definition."""
    return "... " + " ".join(str(error).split())[-200:]
