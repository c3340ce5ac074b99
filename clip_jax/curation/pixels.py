"""Whether two pictures are copies of one, by their pixels: embeddings propose pairs, this confirms them.

A picture is reduced to SIDE x SIDE pixels, whole and without margins of one color. Two are compared as
GRID x GRID cells by their correlation in red, green and blue, which changes of brightness and contrast leave
alone; each is also cut a little at its edges, in several ways, and the most alike pair counts.
"""

# P pairs, S rows and columns of a reduced picture, K its two forms, G rows and columns of cells.

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.curation.vectors import cosines
from clip_jax.data.images.transforms import ImageError, decode
from clip_jax.data.loader import cores
from clip_jax.data.samples import BadSample, Source

SIDE, GRID, COARSE = 32, 16, 8
FORMS = 2  # whole, and without margins
REDUCED = 256  # pixels of the longer side in which margins are looked for
MARGIN_LEVELS = 24  # of 255, that the color of a margin varies by
MOST_MARGIN = 0.7  # of a side; a picture with more is a plain one
# Levels of an even deviation that two pictures share: noise on a plain one counts little.
CONTRAST = 8.0
COLOR = 0.5  # weight of the mean color
AT_ONCE = 512  # pairs that are compared in full
COARSE_AT_ONCE = 1 << 14
# How far a coarse comparison may be below the border, so that the pair is not compared in full.
FAR = 0.4


def _cuts() -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of what stays: nothing cut, all edges, one edge."""
    found = [(0.0, 0.0, 1.0, 1.0)] + [(c, c, 1 - c, 1 - c) for c in (0.02, 0.04, 0.06)]
    for c in (0.05, 0.1):
        found += [(c, 0, 1, 1), (0, c, 1, 1), (0, 0, 1 - c, 1), (0, 0, 1, 1 - c)]
    return found


CUTS = _cuts()


class Check(NamedTuple):
    """What confirms pairs that embeddings propose."""

    similar: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of pairs of rows; NaN: cannot be read
    above: float  # from which similarity on a pair is confirmed


class Pixels:
    """The reduced pictures of a collection's rows, read when they are first asked for.

    Args:
      source: the samples.
      sample_N: which sample each row is.
      data: how they are decoded, and which share of them may be unreadable.
    """

    def __init__(self, source: Source, sample_N: np.ndarray, data: DataConfig):
        self._source, self._sample_N, self._data = source, sample_N, data
        # On the disk, where what is not asked for takes no room.
        shape = (max(1, len(sample_N)), FORMS, SIDE, SIDE, 3)
        with tempfile.TemporaryFile() as file:
            self._pixels = np.memmap(file, np.uint8, "w+", shape=shape)
        with tempfile.TemporaryFile() as file:
            shape = (*shape[:2], 3 * COARSE**2 + 4)
            self._coarse = np.memmap(file, np.float32, "w+", shape=shape)
        self._known_N = np.zeros(len(sample_N), bool)
        self._bad_N = np.zeros(len(sample_N), bool)

    @property
    def unreadable(self) -> int:
        """Rows that were asked for and could not be read."""
        return int(self._bad_N.sum())

    def read(self, rows_N: np.ndarray) -> np.ndarray:
        """(N,) bool: which of some rows can be read, after reading those that are not known yet.

        Raises:
          ValueError: too many cannot be read.
        """
        new = np.unique(rows_N[~self._known_N[rows_N]])
        if len(new):
            with ThreadPoolExecutor(cores(), thread_name_prefix="pixels") as pool:
                for row, found in zip(new.tolist(), pool.map(self._read, new.tolist())):
                    if found is None:
                        self._bad_N[row] = True
                    else:
                        self._pixels[row], self._coarse[row] = found, coarse(found)
            self._known_N[new] = True
            self._check_bad()
        return ~self._bad_N[rows_N]

    def pixels(self, rows_N: np.ndarray) -> np.ndarray:
        """(N, K, S, S, 3) uint8 of rows that were read."""
        return self._pixels[rows_N]

    def coarse(self, rows_N: np.ndarray) -> np.ndarray:
        """(N, K, D) float32 of rows that were read."""
        return self._coarse[rows_N]

    def _read(self, row: int) -> np.ndarray | None:
        cfg = self._data
        try:
            data = self._source[int(self._sample_N[row])].image
            limits = {"max_pixels": cfg.max_image_pixels, "exif_rotation": cfg.exif_rotation}
            return reduce(decode(data, **limits))
        except (BadSample, ImageError):  # it could be read when it was embedded
            return None

    def _check_bad(self):
        bad, most = self.unreadable, max(1.0, self._data.max_bad_share * len(self._sample_N))
        if bad > most:
            raise ValueError(
                f"{self._source.name}: {bad:_} pictures that were embedded cannot be read now, above "
                f"data.max_bad_share={self._data.max_bad_share}; without pictures, give --pixels-above None"
            )


class Block:
    """The same of some rows whose pictures were all read before."""

    def __init__(self, pixels_NKSSC: np.ndarray, readable_N: np.ndarray):
        self._pixels, self._readable_N = pixels_NKSSC, readable_N
        forms = [coarse(pixels_NKSSC[:, k]) for k in range(FORMS)]
        self._coarse = np.stack(forms, axis=1)

    def read(self, rows_N: np.ndarray) -> np.ndarray:
        return self._readable_N[rows_N]

    def pixels(self, rows_N: np.ndarray) -> np.ndarray:
        return self._pixels[rows_N]

    def coarse(self, rows_N: np.ndarray) -> np.ndarray:
        return self._coarse[rows_N]


def check(one: Pixels | Block, other: Pixels | Block, above: float) -> Check:
    """Compares rows of one collection with rows of another, or of the same."""

    def similar(one_P: np.ndarray, other_P: np.ndarray) -> np.ndarray:
        found_P = np.full(len(one_P), np.nan)
        for first in range(0, len(one_P), COARSE_AT_ONCE):
            a, b = (rows_P[first : first + COARSE_AT_ONCE] for rows_P in (one_P, other_P))
            read_P = one.read(a) & other.read(b)
            coarse_P = coarse_similarity(one.coarse(a), other.coarse(b))
            found_P[first : first + len(a)] = np.where(read_P, coarse_P, np.nan)
        near = np.flatnonzero(found_P >= above - FAR)
        for first in range(0, len(near), AT_ONCE):
            at = near[first : first + AT_ONCE]
            found_P[at] = similarity(one.pixels(one_P[at]), other.pixels(other_P[at]))
        return found_P

    return Check(similar, above)


def of_places(check: Check | None, number_R: np.ndarray) -> Check | None:
    """The check of places in a list of rows."""
    if check is None:
        return None
    return Check(lambda place_P, number_P: check.similar(number_R[place_P], number_P), check.above)


def reduce(pixels_HWC: np.ndarray) -> np.ndarray:
    """(K, S, S, 3) uint8: the whole picture, and the picture without margins of one color."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((REDUCED, REDUCED), Image.Resampling.BILINEAR)
    small_HWC = np.asarray(image)
    top, bottom = _margins(small_HWC)
    left, right = _margins(small_HWC.transpose(1, 0, 2))
    height, width = small_HWC.shape[:2]
    box = (left, top, width - right, height - bottom)
    size, kind = (SIDE, SIDE), Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(image.resize(size, kind)), np.asarray(image.resize(size, kind, box))]
    )


def _margins(x_HWC: np.ndarray) -> tuple[int, int]:
    """Rows of one color at the beginning and at the end."""

    def count(x_HWC: np.ndarray) -> int:
        edge_C = np.median(x_HWC[0].astype(np.int16), axis=0)
        differs_H = (np.abs(x_HWC - edge_C) > MARGIN_LEVELS).any(axis=(1, 2))
        return int(differs_H.argmax()) if differs_H.any() else len(x_HWC)

    first, last = count(x_HWC), count(x_HWC[::-1])
    return (0, 0) if first + last > MOST_MARGIN * len(x_HWC) else (first, last)


def coarse(pixels_PSSC: np.ndarray) -> np.ndarray:
    """(P, D) float32 of unit length: few cells of each picture."""
    return _cells(pixels_PSSC, COARSE, CUTS[0])


def coarse_similarity(one_PKD: np.ndarray, other_PKD: np.ndarray) -> np.ndarray:
    """(P,) float64: what `similarity` cannot be far above."""
    forms = [(0, 0), (1, 0), (0, 1)]  # of a margin, that one of them alone has
    found = [np.einsum("pd,pd->p", one_PKD[:, a], other_PKD[:, b]) for a, b in forms]
    return np.max(found, axis=0).astype(np.float64)


def similarity(one_PKSSC: np.ndarray, other_PKSSC: np.ndarray) -> np.ndarray:
    """(P,) float64, at most 1."""
    found_P = _best_cut(one_PKSSC[:, 0], other_PKSSC[:, 0])
    for k, x in enumerate((one_PKSSC, other_PKSSC)):
        has_P = np.flatnonzero((x[:, 0] != x[:, 1]).any(axis=(1, 2, 3)))
        pair = (one_PKSSC[has_P, 1 - k], other_PKSSC[has_P, k])
        found_P[has_P] = np.maximum(found_P[has_P], _best_cut(*pair))
    return found_P


def _best_cut(one_PSSC: np.ndarray, other_PSSC: np.ndarray) -> np.ndarray:
    """(P,) float64: the highest similarity of one that is whole and one that is cut."""
    whole = [_cells(x, GRID, CUTS[0]) for x in (one_PSSC, other_PSSC)]
    found_P = cosines(*whole)
    for cut in CUTS[1:]:
        found_P = np.maximum(found_P, cosines(whole[0], _cells(other_PSSC, GRID, cut)))
        found_P = np.maximum(found_P, cosines(whole[1], _cells(one_PSSC, GRID, cut)))
    return found_P


def _cells(x_PSSC: np.ndarray, cells: int, cut: tuple[float, float, float, float]) -> np.ndarray:
    """(P, cells^2 x 3 + 4) float32 of unit length: the means of cells, without those of the picture."""
    left, top, right, bottom = cut
    P = len(x_PSSC)
    x_PSX = x_PSSC.astype(np.float32).reshape(P, SIDE, SIDE * 3)
    x_PGSC = (_weights(top, bottom, cells) @ x_PSX).reshape(P, cells, SIDE, 3)
    x_PNC = (_weights(left, right, cells) @ x_PGSC).reshape(P, cells * cells, 3)
    mean_P1C = x_PNC.mean(axis=1, keepdims=True)
    color_PC = (mean_P1C - mean_P1C.mean(axis=2, keepdims=True))[:, 0] * (COLOR * cells)
    parts = [(x_PNC - mean_P1C).reshape(P, cells * cells * 3), color_PC]
    parts.append(np.full((P, 1), CONTRAST * cells * np.sqrt(3.0), np.float32))
    v_PD = np.concatenate(parts, axis=1)
    return v_PD / np.linalg.norm(v_PD, axis=1, keepdims=True)


def _weights(first: float, last: float, cells: int) -> np.ndarray:
    """(cells, SIDE) float32: how much of each pixel lies in each cell between two places."""
    edges = SIDE * (first + (last - first) * np.arange(cells + 1) / cells)
    pixel = np.arange(SIDE)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    inside = np.maximum(inside, 0)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
