"""The files of a filter: subset files, every decision as Parquet, the counts, the report."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.config_io import to_json
from clip_jax.curation import report
from clip_jax.curation.collection import EmbeddedSource, EvaluationSet
from clip_jax.curation.concepts import Entries
from clip_jax.curation.filter import FilterConfig, Outcome
from clip_jax.data.subset_file import SUFFIX
from clip_jax.redaction import redact

KEPT = f"kept{SUFFIX}"
DECISIONS, COUNTS, PAGE = "decisions.parquet", "filter.json", "report.html"


def refuse_full(out: str):
    """Refuse a folder that holds a filter's files already.

    Raises:
      ValueError: it does.
    """
    if (epath.Path(out).expanduser() / COUNTS).exists():
        raise ValueError(f"{out} holds the files of a filter: name another folder, or delete it")


def write_outcome(
    collection: EmbeddedSource,
    outcome: Outcome,
    out: str,
    cfg: FilterConfig,
    *,
    data: DataConfig,
    sets: Sequence[EvaluationSet] = (),
    entries: Entries | None = None,
    facts: Mapping[str, str] | None = None,
) -> dict:
    """Write all files into the folder `out`; the counts, which are written last.

    Raises:
      ValueError: no sample is kept.
    """
    folder = epath.Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    kept_N = outcome.kept()
    counts = {
        "source": redact(collection.source.name),
        "source_fingerprint": collection.source.fingerprint,
        "samples": len(collection.source),
        "embedded": len(collection),
        "kept": len(kept_N),
        "rules": [
            {
                "rule": one.rule,
                "border": one.border,
                "seen": one.seen,
                "dropped": len(one.dropped_N),
            }
            for one in outcome.decisions
        ],
        "settings": to_json(cfg),
        "facts": dict(facts or {}),
    }
    if not len(kept_N):
        dropped = ", ".join(f"{len(x.dropped_N):_} by {x.rule}" for x in outcome.decisions)
        raise ValueError(f"no sample is kept ({dropped}): the rules are too strict for this data")
    made_by = f"clip-jax data filter {json.dumps(counts['settings'])}"
    collection.write_subset(str(folder / KEPT), kept_N, made_by=made_by)
    for one in outcome.decisions:
        if len(one.dropped_N):
            path = str(folder / f"dropped_{one.rule}{SUFFIX}")
            collection.write_subset(path, one.dropped_N, made_by=made_by)
    with (folder / DECISIONS).open("wb") as file:
        pq.write_table(_table(collection, outcome), file)
    more = {"data": data, "sets": sets, "entries": entries}
    page = report.render(collection, outcome, cfg, facts=_facts(counts), **more)
    storage.atomic_write(folder / PAGE, page)
    storage.atomic_write(folder / COUNTS, json.dumps(counts, indent=1) + "\n")
    return counts


def _table(collection: EmbeddedSource, outcome: Outcome) -> pa.Table:
    """A row for each embedded sample."""
    rows = len(collection)
    by_N, value_N = np.zeros(rows, np.int8), np.full(rows, np.nan)
    pixels_N = np.full(rows, np.nan)
    partner_N, set_N = np.full(rows, -1, np.int64), np.full(rows, -1, np.int64)
    for number, one in enumerate(outcome.decisions, start=1):
        dropped_N = one.dropped_N
        by_N[dropped_N], value_N[dropped_N] = number, one.value_N[dropped_N]
        if one.pixels_N is not None:
            pixels_N[dropped_N] = one.pixels_N[dropped_N]
        if one.partner_N is not None:
            partner_N[dropped_N] = one.partner_N[dropped_N]
            if one.set_N is None:  # a row of the collection itself
                partner_N[dropped_N] = collection.sample_N[partner_N[dropped_N]]
            else:
                set_N[dropped_N] = one.set_N[dropped_N]
    names = ["", *(one.rule for one in outcome.decisions)]
    columns = {
        "sample": collection.sample_N,
        "dropped_by": pa.DictionaryArray.from_arrays(pa.array(by_N), names).cast(pa.string()),
        "value": pa.array(value_N, mask=np.isnan(value_N)),
        "pixels": pa.array(pixels_N, mask=np.isnan(pixels_N)),
        "partner": pa.array(partner_N, mask=partner_N < 0),
        "evaluation_set": pa.array(set_N, mask=set_N < 0),
    }
    if outcome.score_N is not None:
        columns["score"] = outcome.score_N
    return pa.table(columns)


def _facts(counts: dict) -> dict[str, str]:
    settings = {
        name: str(value) for name, value in counts["settings"].items() if value not in (None, [])
    }
    return {**counts["facts"], "source fingerprint": counts["source_fingerprint"], **settings}
