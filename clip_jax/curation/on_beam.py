"""The same decisions on Apache Beam, for collections that outgrow one machine: Flink, Spark, Dataflow.

Workers measure rows and pairs of blocks and write what they found into a folder; this process decides by
the rules of `curation.filter`. Every worker must reach the embeddings and the folder by the same paths.
A worker compares with NumPy; near pairs are decided in float64, as on devices, so that the decisions are
the same.
"""

import io
from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from clip_jax import storage
from clip_jax.collection.embeddings import Embeddings, open_embeddings
from clip_jax.collection.origin import reopen
from clip_jax.config import DataConfig
from clip_jax.curation.collection import EmbeddedSource, EvaluationSet
from clip_jax.curation.concepts import Entries, Matches
from clip_jax.curation.duplicates import Nearest
from clip_jax.curation.filter import (
    Decision,
    FilterConfig,
    Outcome,
    by_score,
    check_rules,
    concepts_decision,
    duplicates_decision,
)
from clip_jax.curation.neighbors import MARGIN, best_of_rows
from clip_jax.curation.pixels import Block, Check, Pixels, check, of_places
from clip_jax.curation.vectors import Rows, cosines, pair_scores, unit

BLOCK = 8192  # rows of a piece of work
DATA = DataConfig()


def decide_on_beam(
    collection: EmbeddedSource,
    cfg: FilterConfig,
    sets: Sequence[EvaluationSet],
    entries: Entries | None,
    folder: str,
    *,
    data: DataConfig = DATA,
    block: int = BLOCK,
    options: Sequence[str] = (),
) -> Outcome:
    """As `filter.decide`, on the runner that `options` names, such as "--runner=FlinkRunner".

    Args:
      collection: what is filtered.
      cfg: the rules; duplicates are compared exactly.
      sets: evaluation sets, for the rule "evaluation".
      entries: the list of concepts, for the rule "concepts".
      folder: a new folder or URL for what workers find; it can be deleted afterwards.
      data: how pictures are decoded that embeddings propose as copies.
      block: rows of a piece of work.
      options: Beam's own.

    Raises:
      ValueError: no rule is set, or duplicates are to be compared within clusters alone.
    """
    check_rules(cfg)
    if cfg.duplicates_clusters is not None:
        raise ValueError("duplicates_clusters: on Beam all pairs are compared; leave it out")
    root = str(collection.embeddings.root)
    evaluation = [str(one.embeddings.root) for one in sets]
    starts = list(range(0, len(collection), block))
    pairs = [(a, b) for a in starts for b in starts if a <= b] if "duplicates" in cfg.active else []
    measure = _Measure(root, evaluation, cfg, entries, folder, block, data)
    _run(starts, measure, options)
    if pairs:  # of whose rows the pictures are measured
        _run(pairs, _Compare(root, cfg, folder, block), options)
    rows = [_read(folder, f"rows_{start}") for start in starts]
    found = [_read(folder, f"pairs_{a}_{b}") for a, b in pairs]
    return decide_measured(collection, cfg, _joined(rows), _joined(found), entries)


def _run(work: Sequence, do: beam.DoFn, options: Sequence[str]):
    """Do each piece of work on some worker."""
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "Pieces of work" >> beam.Create(work)
            | "Spread" >> beam.Reshuffle()
            | type(do).__name__.strip("_") >> beam.ParDo(do)
        )


def decide_measured(
    collection: EmbeddedSource,
    cfg: FilterConfig,
    rows: Mapping[str, np.ndarray],
    pairs: Mapping[str, np.ndarray],
    entries: Entries | None,
) -> Outcome:
    """Apply the rules to what was measured of all rows and of all near pairs."""
    outcome = Outcome(len(collection), score_N=rows.get("score"))
    left_N = np.arange(len(collection))
    for rule in cfg.active:
        if rule == "score":
            decision = by_score(rows["score"], left_N, cfg)
        elif rule == "evaluation":
            value_N = np.full(len(collection), np.nan)
            value_N[left_N] = rows["value"][left_N]
            dropped_N = left_N[rows["near"][left_N]]
            near = (value_N, rows["partner"], rows["set"])
            more = {"pixels_N": rows["pixels"] if cfg.compares_pixels else None}
            decision = Decision(rule, len(left_N), cfg.against_above, dropped_N, *near, **more)
        elif rule == "duplicates":
            assert cfg.duplicates_above is not None
            order_N = left_N
            if cfg.duplicates_keep == "best":
                order_N = left_N[np.argsort(-rows["score"][left_N], kind="stable")]
            found = greedy(len(collection), order_N, **pairs)
            checked = cfg.compares_pixels
            decision = duplicates_decision(found, left_N, cfg.duplicates_above, checked=checked)
        else:
            assert entries is not None
            takes_part_M = np.isin(rows["row"], left_N)
            matches = Matches(rows["row"][takes_part_M], rows["entry"][takes_part_M])
            decision = concepts_decision(matches, collection.key_hashes(), left_N, entries, cfg)
        left_N = np.setdiff1d(left_N, decision.dropped_N, assume_unique=True)
        outcome.decisions.append(decision)
    return outcome


def greedy(
    rows: int,
    order_N: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    cosine: np.ndarray,
    pixels: np.ndarray,
) -> Nearest:
    """The rule of `find_duplicates` for near pairs that are all known."""
    found = Nearest.empty(rows)
    place_N = np.full(rows, -1, np.int64)
    place_N[order_N] = np.arange(len(order_N))
    both = (place_N[one] >= 0) & (place_N[other] >= 0)
    one, other, cosine, pixels = one[both], other[both], cosine[both], pixels[both]
    swapped = place_N[one] > place_N[other]
    first, second = np.where(swapped, other, one), np.where(swapped, one, other)
    # The pairs of a row follow one another, the nearest first, of equals the first in the order.
    order_P = np.lexsort((place_N[first], -cosine, place_N[second]))
    for pair in order_P.tolist():
        row, partner = int(second[pair]), int(first[pair])
        if found.partner_N[row] < 0 and found.partner_N[partner] < 0:
            found.partner_N[row], found.cosine_N[row] = partner, cosine[pair]
            found.pixels_N[row] = pixels[pair]
    return found


class _Measure(beam.DoFn):
    """What can be said of each row by itself."""

    def __init__(self, root, evaluation, cfg: FilterConfig, entries, folder: str, block: int, data):
        self._paths, self._cfg, self._data = (root, evaluation), cfg, data
        self._entries, self._folder, self._block = entries, folder, block

    def setup(self):
        root, evaluation = self._paths
        self._embeddings = open_embeddings(root)
        sets = [open_embeddings(path) for path in evaluation]
        self._sets = [one.vectors["image"] for one in sets]
        self._checks: list = [None] * len(sets)
        if self._cfg.compares_pixels:
            self._pixels = _pixels(self._embeddings, self._data)
            above = self._cfg.pixels_above
            self._checks = [check(self._pixels, _pixels(one, self._data), above) for one in sets]

    def process(self, start: int):
        rows_N = np.arange(start, min(start + self._block, self._embeddings.rows))
        vectors, found = self._embeddings.vectors, {}
        if "image" in vectors and "text" in vectors:
            parts = [_Part(vectors[kind], start, len(rows_N)) for kind in ("image", "text")]
            found["score"] = pair_scores(*parts)
        if self._sets:
            z_NE = unit(vectors["image"], rows_N)
            checks = [of_places(one, rows_N) for one in self._checks]
            found |= _nearest(z_NE, self._sets, self._cfg.against_above, self._block, checks)
        if self._entries is not None:
            column = self._embeddings.metadata["caption"].slice(start, len(rows_N))
            matches = self._entries.match_all(column.to_pylist(), rows_N.tolist())
            found |= {"row": matches.row_M, "entry": matches.entry_M}
        if self._cfg.compares_pixels and self._cfg.duplicates_above is not None:
            readable_N, pixels = self._pixels.read(rows_N), self._pixels.pixels(rows_N)
            measured = {"pixels": pixels, "readable": readable_N}
            _write(self._folder, f"pixels_{start}", measured)
        yield _write(self._folder, f"rows_{start}", found)


class _Compare(beam.DoFn):
    """The near pairs of two blocks of rows."""

    def __init__(self, root: str, cfg: FilterConfig, folder: str, block: int):
        self._root, self._cfg, self._folder, self._block = root, cfg, folder, block

    def setup(self):
        self._image = open_embeddings(self._root).vectors["image"]

    def process(self, starts: tuple[int, int]):
        rows = [np.arange(s, min(s + self._block, len(self._image))) for s in starts]
        one_AE, other_BE = (unit(self._image, numbers) for numbers in rows)
        above = self._cfg.duplicates_above
        assert above is not None
        near_AB = one_AE @ other_BE.T >= above - MARGIN
        if starts[0] == starts[1]:
            near_AB = np.triu(near_AB, 1)
        a, b = np.nonzero(near_AB)
        cosine = _pair_cosines(one_AE, other_BE, a, b)
        near = cosine >= above
        a, b, cosine, pixels = a[near], b[near], cosine[near], np.full(near.sum(), np.nan)
        if self._cfg.compares_pixels:
            pixels = self._similar(starts, a, b)
            same = pixels >= self._cfg.pixels_above
            a, b, cosine, pixels = a[same], b[same], cosine[same], pixels[same]
        found = {"one": rows[0][a], "other": rows[1][b], "cosine": cosine, "pixels": pixels}
        yield _write(self._folder, f"pairs_{starts[0]}_{starts[1]}", found)

    def _similar(self, starts: tuple[int, int], a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """How similar the pixels of pairs of two blocks are; NaN where one could not be read."""
        blocks = [_read(self._folder, f"pixels_{start}") for start in starts]
        ends = [Block(one["pixels"], one["readable"]) for one in blocks]
        return check(*ends, self._cfg.pixels_above).similar(a, b)


def _pixels(embeddings: Embeddings, data: DataConfig) -> Pixels:
    """The pictures of embeddings, on a worker."""
    source = reopen(embeddings)
    if source is None:
        raise ValueError(
            f"{embeddings.root}: the pictures cannot be read on this machine, at the path that they were "
            "embedded from: --pixels-above None lets embeddings decide alone"
        )
    return Pixels(source, embeddings.metadata["sample"].to_numpy(), data)


class _Part:
    """Some rows as a whole."""

    def __init__(self, rows: Rows, start: int, count: int):
        self._rows, self._start, self._count, self.dim = rows, start, count, rows.dim

    def __len__(self) -> int:
        return self._count

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        return self._rows.take(self._start + rows_N)


def _nearest(
    z_NE: np.ndarray,
    sets: Sequence[Rows],
    above: float,
    block: int,
    checks: Sequence[Check | None],
) -> dict:
    """The nearest row of the evaluation sets: decided in float64 from the threshold on."""
    N = len(z_NE)
    value_N, pixels_N, near_N = np.full(N, np.nan), np.full(N, np.nan), np.zeros(N, bool)
    partner_N, set_N = np.full(N, -1, np.int64), np.full(N, -1, np.int64)
    for number, (rows, check_) in enumerate(zip(sets, checks, strict=True)):
        for other, other_BE in _blocks(rows, block):
            cosine_NB = z_NE @ other_BE.T
            a, b = np.nonzero(cosine_NB >= above - MARGIN)
            exact = _pair_cosines(z_NE, other_BE, a, b)
            below_NB = np.minimum(cosine_NB.astype(np.float64), np.nextafter(above, 0))
            best_N = below_NB.argmax(axis=1)
            below_N = below_NB[np.arange(N), best_N]
            better_N = ~near_N & ~(value_N >= below_N)
            value_N[better_N], partner_N[better_N] = below_N[better_N], other + best_N[better_N]
            set_N[better_N] = number
            near = exact >= above
            a, b, exact, pixels = a[near], b[near], exact[near], np.full(near.sum(), np.nan)
            if check_ is not None:
                pixels = check_.similar(a, other + b)
                same = pixels >= check_.above
                a, b, exact, pixels = a[same], b[same], exact[same], pixels[same]
            best = best_of_rows(a, exact)
            best = best[~near_N[a[best]] | (exact[best] > value_N[a[best]])]
            at = a[best]
            near_N[at], value_N[at], pixels_N[at] = True, exact[best], pixels[best]
            partner_N[at], set_N[at] = other + b[best], number
    found = {"value": value_N, "partner": partner_N, "set": set_N}
    return found | {"near": near_N, "pixels": pixels_N}


def _blocks(rows: Rows, block: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(rows), block):
        yield start, unit(rows, np.arange(start, min(start + block, len(rows))))


def _pair_cosines(one_AE, other_BE, a: np.ndarray, b: np.ndarray, at_once: int = 1 << 16):
    parts = [
        cosines(one_AE[a[first : first + at_once]], other_BE[b[first : first + at_once]])
        for first in range(0, len(a), at_once)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _write(folder: str, name: str, arrays: dict[str, np.ndarray]) -> str:
    file = io.BytesIO()
    np.savez(file, **arrays)
    storage.atomic_write(epath.Path(folder) / f"{name}.npz", file.getvalue())
    return name


def _read(folder: str, name: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO((epath.Path(folder) / f"{name}.npz").read_bytes())) as arrays:
        return dict(arrays)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    )
