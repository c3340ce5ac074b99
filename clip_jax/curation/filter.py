"""Which samples of an embedded collection are kept: score, evaluation sets, duplicates, concepts.

The rules follow one another, and each sees what those before it left. What a rule drops is a function
of embeddings, keys, captions and settings alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from jax.sharding import Mesh

from clip_jax.curation.concepts import Balance, Entries, Matches, balance
from clip_jax.curation.duplicates import BLOCK, Nearest, find_duplicates
from clip_jax.curation.neighbors import DROPPED, Columns, nearest_of
from clip_jax.curation.pixels import Check, Pixels, check, of_places
from clip_jax.curation.vectors import Rows, pair_scores, unit
from clip_jax.registry import AtLeastOne, Count, Part, Seed, Settings

RULES = ("score", "evaluation", "duplicates", "concepts")  # in the order in which they are applied


@dataclass(frozen=True, kw_only=True)
class FilterConfig(Settings):
    """Which rules are applied; a rule without its setting is not."""

    score_above: float | None = None  # keep pairs with at least this cosine of image and text
    score_share: Part | None = None  # keep this share of the pairs, those with the highest cosine
    duplicates_above: Part | None = None  # cosine of two images from which on one is dropped
    duplicates_keep: Literal["first", "best"] = "first"  # best: the one with the highest score
    duplicates_clusters: Count | None = None  # compare within clusters alone; None: all, exactly
    duplicates_probes: Count = 2  # clusters that each image belongs to, its nearest ones
    against: tuple[str, ...] = ()  # embeddings of evaluation sets, or sources of them
    against_above: Part = 0.95  # cosine with one of their images from which on a pair is dropped
    # The similarity of two images' pixels from which on near ones are copies; None: whatever is near.
    pixels_above: Part | None = 0.96
    concepts: str | None = None  # a text file of entries, one a line (MetaCLIP's metadata)
    concept_limit: AtLeastOne = 20_000  # pairs of an entry that are kept in the mean, at most
    seed: Seed = 0  # of the draws of frequent concepts, and of the clusters
    examples: Count = 12  # on each side of a border, in the report

    def __post_init__(self):
        super().__post_init__()
        both = self.score_above is not None and self.score_share is not None
        self.require(not both, "score_share", "excludes score_above: give one of them")
        none = self.duplicates_above is None
        for name in ("duplicates_keep", "duplicates_clusters"):
            self.refuse_ignored(none, name, "duplicates_above is None")
        exact = self.duplicates_clusters is None
        self.refuse_ignored(exact, "duplicates_probes", "duplicates_clusters is None")
        self.refuse_ignored(not self.against, "against_above", "against names no evaluation set")
        self.refuse_ignored(
            none and not self.against,
            "pixels_above",
            "duplicates_above is None and against is empty",
        )
        self.refuse_ignored(self.concepts is None, "concept_limit", "concepts is None")

    @property
    def active(self) -> tuple[str, ...]:
        """The rules that are applied."""
        on = {
            "score": self.score_above is not None or self.score_share is not None,
            "evaluation": bool(self.against),
            "duplicates": self.duplicates_above is not None,
            "concepts": self.concepts is not None,
        }
        return tuple(rule for rule in RULES if on[rule])

    @property
    def compares_pixels(self) -> bool:
        """Whether images are compared that embeddings propose."""
        return self.pixels_above is not None and bool({"evaluation", "duplicates"} & {*self.active})


def check_rules(cfg: FilterConfig):
    """Refuse settings that drop nothing.

    Raises:
      ValueError: no rule is set.
    """
    if not cfg.active:
        raise ValueError(
            "no rule is set, so that nothing would be dropped: give score_above or score_share, "
            "duplicates_above, against, or concepts"
        )


class Collection(Protocol):
    """An embedded source; `None` where there are no embeddings of that kind."""

    image: Rows | None
    text: Rows | None

    def __len__(self) -> int: ...

    def key_hashes(self) -> np.ndarray:
        """(rows,) uint64."""
        ...

    def captions(self, rows_N: np.ndarray) -> Iterable[str]: ...


@dataclass
class Decision:
    """What one rule decided. Rows that another dropped before it took no part."""

    rule: str
    seen: int  # rows that were left before
    border: float | None  # the threshold; None: there is none
    dropped_N: np.ndarray  # rows, rising
    value_N: np.ndarray  # of all rows: what was compared with the border; NaN: took no part
    partner_N: np.ndarray | None = None  # of all rows: the row that it is near to, or -1
    set_N: np.ndarray | None = None  # of all rows: in which evaluation set that row is
    # Of all rows: how similar that row's pixels are; NaN: not known.
    pixels_N: np.ndarray | None = None
    balance: Balance | None = None
    matches: Matches | None = None


@dataclass
class Outcome:
    """What all rules decided."""

    rows: int
    decisions: list[Decision] = field(default_factory=list)
    score_N: np.ndarray | None = None  # of all rows, where both embeddings are there

    def kept(self) -> np.ndarray:
        """The rows that no rule dropped, rising."""
        kept_N = np.ones(self.rows, bool)
        for decision in self.decisions:
            kept_N[decision.dropped_N] = False
        return np.flatnonzero(kept_N)


Report = Callable[[str], None]


def decide(
    collection: Collection,
    cfg: FilterConfig,
    mesh: Mesh,
    *,
    evaluation: Mapping[str, Rows] | None = None,
    entries: Entries | None = None,
    clusters_NC: np.ndarray | None = None,
    pixels: Pixels | None = None,
    evaluation_pixels: Mapping[str, Pixels] | None = None,
    say: Report = lambda line: None,
) -> Outcome:
    """Apply the rules.

    Args:
      collection: what is filtered.
      cfg: the rules.
      mesh: whose devices compare images.
      evaluation: image embeddings of the evaluation sets by name, for the rule "evaluation".
      entries: the list of concepts, for the rule "concepts".
      clusters_NC: clusters of each row, for duplicates within clusters.
      pixels: the pictures of the collection, unless `cfg.pixels_above` is None.
      evaluation_pixels: those of the evaluation sets.
      say: called with a line after each rule.

    Raises:
      ValueError: no rule is set, or one needs embeddings or pictures that are not there.
    """
    check_rules(cfg)
    outcome = Outcome(len(collection))
    left_N = np.arange(len(collection))
    if collection.image is not None and collection.text is not None:
        outcome.score_N = pair_scores(collection.image, collection.text)
    for rule in cfg.active:
        if rule == "score":
            decision = by_score(_need(outcome.score_N, rule, "images and texts"), left_N, cfg)
        elif rule == "evaluation":
            image = _need(collection.image, rule, "images")
            checks = {
                name: _check(cfg, pixels, (evaluation_pixels or {}).get(name))
                for name in evaluation or {}
            }
            decision = by_evaluation(
                image, left_N, evaluation or {}, cfg.against_above, mesh, checks=checks
            )
        elif rule == "duplicates":
            image = _need(collection.image, rule, "images")
            more = {"clusters_NC": clusters_NC, "check": _check(cfg, pixels, pixels)}
            decision = by_duplicates(image, left_N, outcome.score_N, cfg, mesh, **more)
        else:
            decision = by_concepts(collection, left_N, _need(entries, rule, "concepts"), cfg)
        left_N = np.setdiff1d(left_N, decision.dropped_N, assume_unique=True)
        outcome.decisions.append(decision)
        say(
            f"{rule}: {len(decision.dropped_N):_} of {decision.seen:_} dropped, {len(left_N):_} left"
        )
    return outcome


def by_score(score_N: np.ndarray, left_N: np.ndarray, cfg: FilterConfig) -> Decision:
    """Pairs below the threshold, or all but the best share; of equal scores the first row is kept."""
    score_L, border = score_N[left_N], cfg.score_above
    if cfg.score_share is not None:
        kept = max(1, round(cfg.score_share * len(left_N)))
        order_L = np.argsort(-score_L, kind="stable")
        border, dropped_N = float(score_L[order_L[kept - 1]]), left_N[order_L[kept:]]
    else:
        dropped_N = left_N[score_L < border]
    return Decision("score", len(left_N), border, np.sort(dropped_N), _only(score_N, left_N))


def by_evaluation(
    image: Rows,
    left_N: np.ndarray,
    sets: Mapping[str, Rows],
    above: float,
    mesh: Mesh,
    *,
    checks: Mapping[str, Check | None] | None = None,
) -> Decision:
    """Images as near as `above` to one of the evaluation sets, and confirmed by the set's check."""
    N = len(image)
    value_N, pixels_N, rank_N = np.full(N, np.nan), np.full(N, np.nan), np.full(N, -np.inf)
    partner_N, set_N = np.full(N, -1, np.int64), np.full(N, -1, np.int64)
    for number, (name, rows) in enumerate(sets.items()):
        if rows.dim != image.dim:
            raise ValueError(
                f"{name} has embeddings of {rows.dim} numbers, and the collection of {image.dim}: embed "
                "both with the same model"
            )
        columns = Columns(rows, mesh)
        columns.append(np.arange(len(rows)))
        for part_N in _parts(left_N):
            check = of_places((checks or {}).get(name), part_N)
            found = columns.near(unit(image, part_N), above, check)
            nearest = nearest_of(
                *(found.index_R, found.cosine_R, found.below_R, found.below_index_R),
                *(found.pixels_R, found.refused_R, found.refused_index_R, found.refused_cosine_R),
                above=above,
            )
            better_N = nearest.rank_N > rank_N[part_N]
            at = part_N[better_N]
            value_N[at], partner_N[at] = nearest.value_N[better_N], nearest.partner_N[better_N]
            pixels_N[at], rank_N[at] = nearest.pixels_N[better_N], nearest.rank_N[better_N]
            set_N[at] = number
    dropped_N = left_N[rank_N[left_N] >= DROPPED]
    checked = any(one is not None for one in (checks or {}).values())
    more = {"pixels_N": pixels_N if checked else None}
    return Decision("evaluation", len(left_N), above, dropped_N, value_N, partner_N, set_N, **more)


def by_duplicates(
    image: Rows,
    left_N: np.ndarray,
    score_N: np.ndarray | None,
    cfg: FilterConfig,
    mesh: Mesh,
    *,
    clusters_NC: np.ndarray | None = None,
    check: Check | None = None,
) -> Decision:
    """Images near to a kept one before them, in the order of rows or of falling scores."""
    order_N, above = left_N, cfg.duplicates_above
    assert above is not None
    if cfg.duplicates_keep == "best":
        order_N = left_N[
            np.argsort(-_need(score_N, "duplicates_keep=best", "texts")[left_N], kind="stable")
        ]
    found = find_duplicates(image, order_N, above, mesh, clusters_NC=clusters_NC, check=check)
    return duplicates_decision(found, left_N, above, checked=check is not None)


def duplicates_decision(
    found: Nearest, left_N: np.ndarray, above: float, *, checked: bool
) -> Decision:
    """The decision that the partners of all rows make."""
    nearest = nearest_of(
        *(found.partner_N, found.cosine_N, found.below_N, found.below_partner_N),
        *(found.pixels_N, found.refused_N, found.refused_partner_N, found.refused_cosine_N),
        above=above,
    )
    dropped_N = left_N[found.partner_N[left_N] >= 0]
    value_N = _only(nearest.value_N, left_N)
    more = {"pixels_N": nearest.pixels_N if checked else None}
    return Decision("duplicates", len(left_N), above, dropped_N, value_N, nearest.partner_N, **more)


def by_concepts(
    collection: Collection, left_N: np.ndarray, entries: Entries, cfg: FilterConfig
) -> Decision:
    """Captions of no entry, and of frequent entries those that no entry draws."""
    parts = [entries.match_all(collection.captions(part_N), part_N) for part_N in _parts(left_N)]
    matches = Matches(*(np.concatenate(column) for column in zip(*parts)))
    return concepts_decision(matches, collection.key_hashes(), left_N, entries, cfg)


def concepts_decision(
    matches: Matches, key_N: np.ndarray, left_N: np.ndarray, entries: Entries, cfg: FilterConfig
) -> Decision:
    """The decision that the entries of all captions make."""
    result = balance(matches, entries, key_N, limit=cfg.concept_limit, seed=cfg.seed)
    # How near a sample is to the border: the chance that its rarest entry gives it.
    value_N = np.full(len(key_N), np.nan)
    value_N[left_N] = 0.0
    chance_M = np.minimum(1.0, cfg.concept_limit / result.count_S[matches.entry_M])
    np.maximum.at(value_N, matches.row_M, chance_M)
    dropped_N = left_N[~result.keeps_N[left_N]]
    about = {"balance": result, "matches": matches}
    return Decision("concepts", len(left_N), None, dropped_N, value_N, **about)


def _check(cfg: FilterConfig, one: Pixels | None, other: Pixels | None) -> Check | None:
    if cfg.pixels_above is None:
        return None
    if one is None or other is None:
        raise ValueError(
            "pixels_above needs the pictures of the collection and of the evaluation sets: set it to None "
            "to let embeddings decide alone"
        )
    return check(one, other, cfg.pixels_above)


def _need(value, rule: str, what: str):
    if value is None:
        raise ValueError(f"the rule {rule} needs embeddings of {what}: embed the source with them")
    return value


def _only(value_N: np.ndarray, rows_N: np.ndarray) -> np.ndarray:
    """The values of some rows, NaN elsewhere."""
    out_N = np.full(len(value_N), np.nan)
    out_N[rows_N] = value_N[rows_N]
    return out_N


def _parts(rows_N: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows_N), BLOCK):
        yield rows_N[start : start + BLOCK]
