"""report.html of a filter: counts by rule, and samples on both sides of each border."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from clip_jax.config import DataConfig
from clip_jax.curation.collection import EmbeddedSource, EvaluationSet
from clip_jax.curation.concepts import Entries
from clip_jax.curation.filter import Decision, FilterConfig, Outcome
from clip_jax.curation.neighbors import NONE
from clip_jax.data.samples import BadSample
from clip_jax.data.tools.preview import thumbnail
from clip_jax.redaction import redact

SIDE = 160  # pixels of the longer side of a picture
BARS = 60  # of the histogram
ENTRIES = 20  # of the table of concepts

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("clip_jax.curation", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TITLES = {
    "score": "CLIP score",
    "evaluation": "Evaluation sets",
    "duplicates": "Near duplicates",
    "concepts": "Concepts",
}


class Picture(NamedTuple):
    """A sample on the page."""

    image: str | None  # a data URL
    key: str
    caption: str


class Example(NamedTuple):
    """A sample at a border, and what it is near to."""

    value: str
    sample: Picture
    partner: Picture | None


class Side(NamedTuple):
    """The samples on one side of a border, the nearest first."""

    title: str
    examples: list[Example]


def render(
    collection: EmbeddedSource,
    outcome: Outcome,
    cfg: FilterConfig,
    *,
    data: DataConfig,
    sets: Sequence[EvaluationSet] = (),
    entries: Entries | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """The page, with all that it shows inside it."""
    page = _Page(collection, cfg, data, sets)
    kept = len(outcome.kept())
    return ENVIRONMENT.get_template("filter.html.jinja").render(
        name=redact(collection.source.name),
        samples=len(collection.source),
        absent=len(collection.source) - len(collection),
        kept=kept,
        share=f"{100 * kept / max(1, len(collection.source)):.1f} %",
        counts=[_count(decision, cfg) for decision in outcome.decisions],
        histogram=_histogram(outcome),
        sections=[page.section(decision) for decision in outcome.decisions],
        concepts=_concepts(outcome, entries),
        facts=dict(facts or {}),
    )


class _Page:
    def __init__(self, collection, cfg: FilterConfig, data: DataConfig, sets):
        self._collection, self._cfg, self._data, self._sets = collection, cfg, data, sets
        self._pictures: dict[int, Picture] = {}

    def section(self, decision: Decision) -> dict:
        """The title of a rule, and the samples on both sides of its border."""
        dropped, kept = borders(decision, self._cfg.examples)
        return {
            "title": TITLES[decision.rule],
            "border": _border(decision, self._cfg),
            "sides": [
                Side("Dropped, nearest to the border", self._examples(decision, dropped)),
                Side("Kept, nearest to the border", self._examples(decision, kept)),
            ],
        }

    def _examples(self, decision: Decision, rows_N: np.ndarray) -> list[Example]:
        return [
            Example(_value(decision, row), self._picture(row), self._partner(decision, row))
            for row in rows_N.tolist()
        ]

    def _partner(self, decision: Decision, row: int) -> Picture | None:
        if decision.partner_N is None or (partner := int(decision.partner_N[row])) < 0:
            return None
        if decision.set_N is None:
            return self._picture(partner)
        one = self._sets[int(decision.set_N[row])]
        try:
            sample = one.sample(partner)
            image = None if sample is None else thumbnail(sample, self._data, side=SIDE)[0]
        except BadSample:
            image = None
        return Picture(image, redact(f"{one.name}: {one.key(partner)}"), one.caption(partner))

    def _picture(self, row: int) -> Picture:
        if row not in self._pictures:
            self._pictures[row] = self._read(row)
        return self._pictures[row]

    def _read(self, row: int) -> Picture:
        rows_N = np.array([row])
        key, caption = self._collection.keys(rows_N)[0], self._collection.captions(rows_N)[0]
        try:
            sample = self._collection.source[int(self._collection.sample_N[row])]
            image, _ = thumbnail(sample, self._data, side=SIDE)
        except BadSample:  # it could be read when it was embedded
            image = None
        return Picture(image, redact(key), caption)


def _border(decision: Decision, cfg: FilterConfig) -> str | None:
    if decision.border is None:
        return None
    pixels = "" if decision.pixels_N is None else f", and at {cfg.pixels_above:.4f} of the pixels"
    return f"{decision.border:.4f}{pixels}"


def _value(decision: Decision, row: int) -> str:
    value = f"{decision.value_N[row]:.4f}"
    if decision.pixels_N is None or np.isnan(decision.pixels_N[row]):
        return value
    return f"{value}, pixels {decision.pixels_N[row]:.4f}"


def borders(decision: Decision, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The dropped and the kept rows that are nearest to the border, the nearest first."""
    took_part_N = decision.value_N > NONE  # and near to anything
    dropped_N = np.zeros(len(took_part_N), bool)
    dropped_N[decision.dropped_N] = True
    far_above = decision.rule in ("score", "concepts")  # high values are kept there
    value_N = decision.value_N
    if decision.pixels_N is not None:  # then theirs is the border, for what is near by embeddings
        value_N = np.where(np.isnan(decision.pixels_N), value_N - 10, decision.pixels_N)
    order_N = np.argsort(-value_N if far_above else value_N, kind="stable")
    dropped = order_N[dropped_N[order_N]][:count]
    kept = order_N[(took_part_N & ~dropped_N)[order_N]][::-1][:count]
    return dropped, kept


def _count(decision: Decision, cfg: FilterConfig) -> dict:
    pixels = "" if decision.pixels_N is None else f", or pixels below {cfg.pixels_above}"
    settings = {
        "score": f"the best {100 * (cfg.score_share or 0):.1f} %, from {decision.border or 0:.4f} on"
        if cfg.score_share
        else f"cosine of image and text from {cfg.score_above} on",
        "evaluation": f"cosine with every evaluation image below {cfg.against_above}{pixels}",
        "duplicates": f"cosine with a kept image below {cfg.duplicates_above}{pixels}, the {cfg.duplicates_keep} "
        "one kept",
        "concepts": f"{cfg.concept_limit:_} captions an entry in the mean",
    }
    dropped = len(decision.dropped_N)
    return {
        "title": TITLES[decision.rule],
        "setting": settings[decision.rule],
        "seen": decision.seen,
        "dropped": dropped,
        "share": f"{100 * dropped / max(1, decision.seen):.2f} %",
        "left": decision.seen - dropped,
    }


def _histogram(outcome: Outcome) -> Markup | None:
    """The scores of all rows and of the kept ones, as SVG."""
    if outcome.score_N is None or not len(outcome.score_N):
        return None
    score_N = outcome.score_N
    low, high = float(score_N.min()), float(score_N.max())
    high = max(high, low + 1e-3)
    all_B, _ = np.histogram(score_N, BARS, (low, high))
    kept_B, _ = np.histogram(score_N[outcome.kept()], BARS, (low, high))
    most = max(1, int(all_B.max()))
    bars = "".join(
        f'<rect class="{kind}" x="{10 * place + 1}" y="{160 - 150 * count / most:.1f}" width="8" '
        f'height="{150 * count / most:.1f}"/>'
        for kind, counts_B in (("all", all_B), ("kept", kept_B))
        for place, count in enumerate(counts_B.tolist())
        if count
    )
    line = ""
    for decision in outcome.decisions:
        if decision.rule == "score" and decision.border is not None:
            x = 10 * BARS * (decision.border - low) / (high - low)
            line = f'<line class="border" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="160"/>'
    text = f'<text x="0" y="178">{low:.3f}</text><text x="{10 * BARS}" y="178" text-anchor="end">{high:.3f}</text>'
    label = "Histogram of CLIP scores, all pairs and kept pairs"
    return Markup(
        f'<svg viewBox="0 0 {10 * BARS} 184" role="img" aria-label="{label}">{bars}{line}{text}</svg>'
    )


def _concepts(outcome: Outcome, entries: Entries | None) -> list[dict]:
    found = next((one.balance for one in outcome.decisions if one.balance is not None), None)
    if found is None or entries is None:
        return []
    most_S = np.argsort(-found.count_S, kind="stable")[:ENTRIES]
    return [
        {"name": entries.names[s], "count": int(found.count_S[s]), "kept": int(found.kept_S[s])}
        for s in most_S.tolist()
        if found.count_S[s]
    ]
