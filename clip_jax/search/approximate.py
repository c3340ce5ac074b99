"""Approximate search: an index in a file names candidates, and their exact vectors decide. Its kinds, and their recall."""

# C: candidates of a query.

import dataclasses
import importlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np

from clip_jax.collection.embeddings import Embeddings, Vectors
from clip_jax.registry import Bounds, Settings
from clip_jax.search.exact import ExactSearch, Found, best_of, unit
from clip_jax.storage.checksums import file_checksum

log = logging.getLogger(__name__)

RECALL_AT = 10
MEASURED = 256  # queries of each kind that recall is measured with
TIE = 1e-6  # of a score that is as good as another


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph(Settings):
    """How a graph is built; more is slower, and finds more."""

    connectivity: Annotated[int, Bounds(2, 1024)] = 16  # neighbours of a row
    expansion_add: Annotated[int, Bounds(1, 65_536)] = 128  # candidates while a row is added


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes:
    """How the codes of vectors are built."""

    numbers: int  # of a vector, for which four bits stand


Report = Callable[[str], None]


class Candidates(Protocol):
    """An opened file, in which rows are looked for."""

    def __call__(self, z_QE: np.ndarray, k: int, effort: int) -> np.ndarray:
        """(Q, C) int64, k rows or more that may be the nearest; -1 where fewer were found."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """All that others must know of a kind of approximate index."""

    file: str  # in the folder of the index
    module: str  # with `write` and `open_file`; its library is of an extra, and is loaded when it is used
    library: str
    settings: tuple[Graph | Codes, ...]  # tried in turn until the recall is reached
    efforts: tuple[int, ...]  # candidates, tried in turn
    least_rows: int  # with fewer rows the exact search takes its place
    mend: str  # where recall is not reached


KINDS = {
    "approximate": Kind(
        file="vectors.faiss",
        module="clip_jax.search.codes",
        library="faiss-cpu",
        settings=(Codes(numbers=4), Codes(numbers=2)),
        efforts=(32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
        least_rows=1000,
        mend="--method exact",
    ),
    "graph": Kind(
        file="vectors.usearch",
        module="clip_jax.search.graph",
        library="usearch",
        settings=(Graph(),),
        efforts=(64, 128, 256, 512, 1024, 2048, 4096),
        least_rows=1,
        mend="a higher --connectivity and --expansion-add, --method approximate or --method exact",
    ),
}


def method_of(info: dict) -> str:
    """The method of an index. Graphs were noted as "approximate" before there were codes."""
    return "graph" if "graph" in info else info["method"]


def load(method: str) -> ModuleType:
    """The module of a kind of approximate index.

    Raises:
      ModuleNotFoundError: its library is not installed.
    """
    return importlib.import_module(KINDS[method].module)


def reported_chunks(
    vectors: Vectors, size: int, report: Report
) -> Iterator[tuple[int, np.ndarray]]:
    """`Vectors.chunks`, whose progress is told every ten seconds and at the end."""
    start = shown = time.monotonic()
    for first, part_NE in vectors.chunks(size):
        yield first, part_NE
        done = first + len(part_NE)
        if time.monotonic() - shown > 10 or done == len(vectors):
            shown = time.monotonic()
            rate = done / (shown - start)
            left = (len(vectors) - done) / rate
            report(f"row {done:_}/{len(vectors):_}: {rate:.0f}/s, {left:.0f} s left")


class ApproximateSearch:
    """Candidates of an index in a file, with the scores of the exact vectors.

    Attributes:
      effort: candidates of each query; more are slower, and find more.
    """

    def __init__(self, candidates: Candidates, vectors: Vectors, *, effort: int):
        self._candidates, self._vectors, self.effort = candidates, vectors, effort

    def search(self, z_QE: np.ndarray, k: int) -> Found:
        """Most of the `k` nearest rows of each query, (Q, E) float32, with their exact scores."""
        known = min(k, len(self._vectors))
        row_QC = self._candidates(z_QE, known, self.effort)
        score_QC = self._vectors.scores(z_QE, np.maximum(row_QC, 0))
        score_QC = np.where(row_QC >= 0, score_QC, -np.inf).astype(np.float32)
        missing = ((0, 0), (0, max(0, k - row_QC.shape[1])))
        return best_of(
            np.pad(score_QC, missing, constant_values=-np.inf),
            np.pad(row_QC, missing, constant_values=-1),
            k,
        )


def open_search(info: dict, folder: Path, vectors: Vectors) -> ApproximateSearch:
    """The search of an index that was built.

    Raises:
      ValueError: the file is not that of these embeddings, or is damaged.
      ModuleNotFoundError: the library of this kind is not installed.
    """
    method = method_of(info)
    module, path = load(method), folder / KINDS[method].file
    if "checksum" in info and (not path.is_file() or file_checksum(path)[1] != info["checksum"]):
        raise ValueError(f"{path} has other bytes than were written: build the index again")
    effort = info.get("candidates") or info.get("expansion_search")  # as graphs had it before
    if not effort:
        raise ValueError(f"{folder} does not say how many candidates are taken: build it again")
    candidates = module.open_file(path, len(vectors), vectors.dim)
    return ApproximateSearch(candidates, vectors, effort=effort)


# ------------------------------------------------------------------------------------ building


def build(
    method: str,
    opened: Embeddings,
    vectors: Vectors,
    folder: Path,
    *,
    exact: ExactSearch,
    target: float,
    settings: Sequence[Any] | None = None,
    report: Report,
) -> dict:
    """Write the file of an approximate index, and take as many candidates as its recall needs.

    Args:
      method: a kind.
      opened: of their vectors of each kind, some are the queries that recall is measured with.
      vectors: the rows.
      folder: of the index.
      exact: of the same rows.
      target: of recall@10.
      settings: tried in turn; None: those of the kind.
      report: is told how far it is.

    Returns:
      What index.json notes of it.
    """
    kind, module = KINDS[method], load(method)
    queries = draw_queries(opened)
    least = {name: exact.search(z_QE, RECALL_AT).score_QK for name, z_QE in queries.items()}
    tried, path = settings or kind.settings, folder / kind.file
    for number, each in enumerate(tried):
        module.write(vectors, path, each, report)
        candidates = module.open_file(path, len(vectors), vectors.dim)
        search = ApproximateSearch(candidates, vectors, effort=kind.efforts[0])
        found = tune(search, queries, least, target=target, efforts=kind.efforts)
        for name, share in found.by_query.items():
            report(f"recall@10 of {len(queries[name])} {name} queries: {share:.4f}")
        if found.reached:
            break
        if number + 1 < len(tried):
            report(
                f"{target:g} is not reached with {found.effort} candidates: building a finer one"
            )
    else:
        log.warning(
            "recall@10 does not reach %g with %d candidates. Build the index with %s",
            target,
            found.effort,
            kind.mend,
        )
    return {
        "graph" if method == "graph" else "codes": dataclasses.asdict(each),
        "candidates": found.effort,
        "recall_at_10": found.by_query,
        "recall_target": target,
        "recall_reached": found.reached,
        "checksum": file_checksum(path)[1],
        kind.library: importlib.metadata.version(kind.library),
    }


def draw_queries(opened: Embeddings) -> dict[str, np.ndarray]:
    """Some vectors of each kind, (Q, E) float32 of unit length; those that have no direction are left out."""
    rng, queries = np.random.default_rng(0), {}
    for name, one in opened.vectors.items():
        z_QE = one.take(rng.choice(len(one), min(MEASURED, len(one)), replace=False))
        length_Q = np.linalg.norm(z_QE, axis=1)
        usable_Q = np.isfinite(length_Q) & (length_Q > 0)
        if usable_Q.any():
            queries[name] = unit(z_QE[usable_Q])
    return queries


class Recall(NamedTuple):
    """What a search finds of the exact nearest rows."""

    effort: int  # candidates
    by_query: dict[str, float]  # share of the 10 nearest rows that is found, by the kind of query
    reached: bool


def tune(
    search: ApproximateSearch,
    queries: dict[str, np.ndarray],
    exact: dict[str, np.ndarray],
    *,
    target: float,
    efforts: Sequence[int],
) -> Recall:
    """Raise the candidates until each kind of query finds `target` of its 10 nearest rows.

    Args:
      search: its `effort` is left at what was found.
      queries: (Q, E) float32 by kind, such as "text".
      exact: (Q, 10), the scores of their nearest rows.
      target: of recall@10.
      efforts: numbers of candidates that are tried.
    """
    found: dict[str, float] = {}
    for effort in efforts:
        search.effort = effort
        found = {
            name: recall(search.search(z_QE, RECALL_AT), exact[name])
            for name, z_QE in queries.items()
        }
        if min(found.values()) >= target:
            return Recall(effort, found, True)
    return Recall(efforts[-1], found, False)


def recall(found: Found, exact_QK: np.ndarray) -> float:
    """The share of the exact nearest rows that is found; a row with an equal score is as good."""
    wanted_QK = np.isfinite(exact_QK)
    least_Q = np.where(wanted_QK, exact_QK, np.inf).min(axis=1)
    right_QK = found.score_QK >= least_Q[:, None] - TIE
    share_Q = right_QK.sum(axis=1) / np.maximum(1, wanted_QK.sum(axis=1))
    return float(np.minimum(share_Q, 1.0).mean())
