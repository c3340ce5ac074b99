"""Notices data whose neighbours are alike, such as data sorted by class: blocks of neighbours do not mix it."""

import contextlib
import itertools
import logging
from collections.abc import Sequence

import numpy as np

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.block_order import BlockOrder
from clip_jax.data.orders import make_order
from clip_jax.data.samples import BadSample, Sample, Source

log = logging.getLogger(__name__)

RUNS, SAMPLES = 8, 16  # runs of neighbours that are read, and samples of each
MOST_BYTES = 16_000_000  # of a run; where samples lie farther apart, nothing is said
ALIKE = 0.1  # of the likeness of neighbours, above that of others
ENOUGH = 0.5  # of the data in a window, which then mixes all of it


def warn_of_sorted_data(sources: Sequence[Source], cfg: DataConfig):
    """Say so where an order in blocks is to mix a source whose neighbours are alike.

    A few runs of neighbours are read, one request each. What cannot be read is left to training.
    """
    order = make_order(sources, cfg, seed=0)
    if not isinstance(order, BlockOrder):
        return
    blocks = sum(len(source.blocks.first_K) - 1 for source in sources)
    share = min(1.0, order.window_blocks / blocks)
    if share >= ENOUGH:
        return
    for source in sources:
        found = likeness(source)
        if found is None or found[0] < found[1] + ALIKE:
            continue
        log.warning(
            "%s: neighbours in the data are alike (%.2f, others %.2f), as in data sorted by class. Blocks of "
            "neighbours, of which the window has %.1f %%, mix it badly, and the model learns less: write "
            "it in random order (clip-jax data convert --shuffle 0), raise data.shuffle_window_mb=%d, or "
            "take data.shuffle=global",
            source.name, *found, 100 * share, cfg.shuffle_window_mb,
        )  # fmt: skip


def likeness(source: Source) -> tuple[float, float] | None:
    """How alike neighbours are, and how alike others; None: nothing can be said.

    Of two samples with labels it is 1 where these are equal; otherwise the share of their words, in
    all of their captions, that both have (Jaccard's index).
    """
    runs = [run for run in map(_words, _runs(source)) if len(run) > 1]
    if len(runs) < 2:
        return None
    near = [_jaccard(*pair) for run in runs for pair in itertools.combinations(run, 2)]
    far = [
        _jaccard(a, b)
        for one, other in itertools.combinations(runs, 2)
        for a, b in itertools.product(one, other)
    ]
    return float(np.mean(near)), float(np.mean(far))


def _runs(source: Source) -> list[list[Sample]]:
    """Neighbours from blocks all over the source; a run lies in one block."""
    first_K = source.blocks.first_K
    blocks = np.unique(np.linspace(0, len(first_K) - 2, RUNS, dtype=int))
    starts, ends = first_K[blocks], np.minimum(first_K[blocks] + SAMPLES, first_K[blocks + 1])
    return [_read(source, start, end) for start, end in zip(starts.tolist(), ends.tolist())]


def _read(source: Source, start: int, end: int) -> list[Sample]:
    found = []
    try:
        span = source.span(start, end)
        if span.end - span.start > MOST_BYTES:
            return []
        data = storage.read_range(span.path, span.start, span.end, info=span.info)
        run = source.unpack(start, end, data)
        for index in range(start, end):
            with contextlib.suppress(BadSample):
                found.append(run[index])
            if found and found[0].path is not None:  # the image of each is a request of its own
                return []
    except (OSError, ValueError) as error:
        log.info("%s: samples %d to %d cannot be read (%s)", source.name, start, end, error)
        return []
    return found


def _words(samples: list[Sample]) -> list[frozenset]:
    if samples and all(sample.label is not None for sample in samples):
        return [frozenset([sample.label]) for sample in samples]
    return [frozenset(" ".join(sample.captions).lower().split()) for sample in samples]


def _jaccard(one: frozenset, other: frozenset) -> float:
    return len(one & other) / max(1, len(one | other))
