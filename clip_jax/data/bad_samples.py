"""The account of unreadable samples: how many, why, in which shards."""

import json
import math
import os
import threading
from collections import Counter

from clip_jax.data.samples import BadSample, Source
from clip_jax.storage import atomic_write

FIRST = 20  # bad samples that are kept by name
MIN_SEEN = 100  # samples before a share means anything


class BadSamples:
    """Counts bad samples by reason and shard. Several threads may write into one.

    `check` stops a run once more than `max_bad_share` of what was seen was bad.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.seen = 0
        self.bad = 0
        self.by_reason: dict[str, Counter] = {}  # reason -> shard -> samples
        self.first: list[tuple[str, str]] = []  # key and reason

    def record(self, seen: int, bad: list[BadSample]):
        """Add `seen` samples that were asked for, of which `bad` were replaced."""
        with self._lock:
            self.seen += seen
            self.bad += len(bad)
            for sample in bad:
                self.by_reason.setdefault(sample.reason, Counter())[sample.shard] += 1
                if len(self.first) < FIRST:
                    self.first.append((sample.key, sample.reason))

    def merge(self, other: "BadSamples"):
        """Add what another process counted."""
        with self._lock:
            self.seen += other.seen
            self.bad += other.bad
            for reason, shards in other.by_reason.items():
                self.by_reason.setdefault(reason, Counter()).update(shards)
            self.first = (self.first + other.first)[:FIRST]

    def check(self, max_bad_share: float, *, whole: int):
        """Raise a ValueError that lists the first bad samples once too many are bad.

        Of a source of `whole` samples, the share counts when all were seen once. Before that it
        stops a run only where chance cannot have made it so, four standard deviations above.
        """
        with self._lock:
            allowed = max_bad_share * self.seen
            if self.seen < whole:
                allowed += 4 * math.sqrt(allowed)
            if self.seen < min(MIN_SEEN, whole) or self.bad <= allowed:
                return
            reasons = ", ".join(
                f"{sum(shards.values())} {reason}" for reason, shards in self.by_reason.items()
            )
            first = "; ".join(f"{key}: {reason}" for key, reason in self.first)
            raise ValueError(
                f"{self.bad} of {self.seen} samples cannot be used ({reasons}), more than "
                f"data.max_bad_share={max_bad_share} allows. The first ones: {first}. Mend or remove "
                "them, or raise data.max_bad_share."
            )

    def to_json(self) -> dict:
        """Everything that was counted, as plain data."""
        with self._lock:
            return {
                "seen": self.seen,
                "bad": self.bad,
                "by_reason": {reason: dict(shards) for reason, shards in self.by_reason.items()},
                "first": [{"key": key, "reason": reason} for key, reason in self.first],
            }

    def save(self, path: str | os.PathLike):
        """Write the account as JSON; a reader never sees half of it."""
        atomic_write(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def from_json(cls, data: dict) -> "BadSamples":
        """The ledger that `to_json` described."""
        ledger = cls()
        ledger.seen, ledger.bad = data["seen"], data["bad"]
        ledger.by_reason = {key: Counter(shards) for key, shards in data["by_reason"].items()}
        ledger.first = [(entry["key"], entry["reason"]) for entry in data["first"]]
        return ledger


def refuse_lost(source: Source, max_bad_share: float):
    """Refuse a source of which files with too many of its samples cannot be used.

    Raises:
      ValueError: they are more than `max_bad_share` of all; it names the files.
    """
    lost = getattr(source, "lost", 0)
    if lost > max_bad_share * (len(source) + lost):
        raise ValueError(
            f"{source.name}: about {lost:_} of {len(source) + lost:_} samples are in files that cannot "
            f"be used, more than data.max_bad_share={max_bad_share} allows: {' '.join(source.notes)}"
        )
