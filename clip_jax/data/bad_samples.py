"""Counts of bad samples: how many, why and in which shards; and a file that lists each of them."""

import json
import math
import os
import threading
from collections import Counter
from pathlib import Path

from absl import logging

from clip_jax.data.samples import BadSample, Source
from clip_jax.storage import atomic_write

FIRST = 20  # bad samples that are kept by name
WORST = 10  # shards of a reason that are kept by name
MIN_SEEN = 100  # samples before a share means anything


class BadSamples:
    """Counts bad samples by reason, with the worst shards of each. Several threads may write into one.

    `to_json` does not grow with the number of shards, since every batch and every checkpoint carries
    a copy of it. Each bad sample is a line in `file`, where there is one.
    """

    def __init__(self, file: Path | None = None):
        self._lock = threading.Lock()
        self.seen = 0
        self.bad = 0
        self.by_reason: Counter[str] = Counter()
        self._shards: dict[str, Counter[str]] = {}  # reason -> shard -> samples
        self._worst: dict[str, dict[str, int]] = {}  # the WORST of them
        self.first: list[tuple[str, str]] = []  # key and reason
        self._file = file

    def record(self, seen: int, bad: list[BadSample]):
        """Add `seen` samples that were asked for, of which `bad` were replaced."""
        with self._lock:
            self.seen += seen
            for sample in bad:
                # One of a reason that comes late is named as well.
                most = FIRST if self.by_reason[sample.reason] else 2 * FIRST
                if len(self.first) < most:
                    self.first.append((sample.key, sample.reason))
                self._add(sample.reason, sample.shard, 1)
            if bad and self._file is not None:
                self._write(bad)

    def _add(self, reason: str, shard: str, count: int):
        self.bad += count
        self.by_reason[reason] += count
        shards = self._shards.setdefault(reason, Counter())
        worst = self._worst.setdefault(reason, {})
        shards[shard] += count
        if shard in worst or len(worst) < WORST:
            worst[shard] = shards[shard]
        elif shards[shard] > worst[least := min(worst, key=worst.get)]:
            del worst[least]
            worst[shard] = shards[shard]

    def _write(self, bad: list[BadSample]):
        lines = (
            {"seen": self.seen, "reason": one.reason, "key": one.key, "shard": one.shard}
            for one in bad
        )
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:  # a log never ends a run
            logging.warning(
                "%s cannot be written (%s); bad samples are only counted.", self._file, error
            )
            self._file = None

    def merge(self, other: "BadSamples"):
        """Add what another process counted."""
        with self._lock:
            self.seen += other.seen
            for reason, shards in other._shards.items():
                for shard, count in shards.items():
                    self._add(reason, shard, count)
            for reason, count in other.by_reason.items():
                unlisted = count - sum(other._shards.get(reason, {}).values())
                self.by_reason[reason] += unlisted
                self.bad += unlisted
            self.first = (self.first + other.first)[: 2 * FIRST]

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
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.by_reason.items())
            first = "; ".join(f"{key}: {reason}" for key, reason in self.first)
            raise ValueError(
                f"{self.bad} of {self.seen} samples cannot be used ({reasons}), more than "
                f"data.max_bad_share={max_bad_share} allows. The first ones: {first}. Mend or remove "
                "them, or raise data.max_bad_share."
            )

    def to_json(self) -> dict:
        """The counts, the worst shards of each reason and the first bad samples, as plain data."""
        with self._lock:
            return {
                "seen": self.seen,
                "bad": self.bad,
                "by_reason": dict(self.by_reason),
                "worst_shards": {reason: dict(shards) for reason, shards in self._worst.items()},
                "first": [{"key": key, "reason": reason} for key, reason in self.first],
            }

    def save(self, path: str | os.PathLike):
        """Write the counts as JSON, atomically."""
        atomic_write(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def start(cls, file: Path | None) -> "BadSamples":
        """Empty counts; lines that an earlier start wrote to the file are removed."""
        if file is not None:
            file.unlink(missing_ok=True)
        return cls(file)

    @classmethod
    def from_json(cls, data: dict, file: Path | None = None) -> "BadSamples":
        """The counts that `to_json` wrote; also of an earlier version, which wrote all shards.

        `file` keeps the lines that were written before the checkpoint.
        """
        restored = cls(file)
        restored.seen = data["seen"]
        shards = data.get("worst_shards", data["by_reason"])
        for reason, counts in shards.items():
            for shard, count in counts.items():
                restored._add(reason, shard, count)
        if "worst_shards" in data:
            restored.by_reason = Counter(data["by_reason"])
        restored.bad = data["bad"]
        restored.first = [(entry["key"], entry["reason"]) for entry in data["first"]]
        if file is not None and file.is_file():
            restored._drop_repeated_lines()
        return restored

    def _drop_repeated_lines(self):
        """Drop the lines of samples that a run read after its checkpoint, and reads again."""
        partial = self._file.with_name(f".{self._file.name}.partial")
        try:
            with (
                self._file.open(encoding="utf-8") as old,
                partial.open("w", encoding="utf-8") as new,
            ):
                new.writelines(line for line in old if _is_seen(line, self.seen))
            partial.replace(self._file)
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._file, error)


def _is_seen(line: str, seen: int) -> bool:
    try:
        return json.loads(line)["seen"] <= seen
    except (ValueError, KeyError):  # cut off, when the run was killed
        return False


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
