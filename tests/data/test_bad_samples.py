"""Bad samples are counted by reason and shard, and stop a run when they are too many."""

import json

import numpy as np
import pytest

from clip_jax.data.bad_samples import FIRST, BadSamples
from clip_jax.data.samples import BadSample


def bad(number, reason="truncated-jpeg", shard="00000.tar"):
    return BadSample(reason, key=f"{shard}/{number}", shard=shard)


def test_counts_are_by_reason_and_shard():
    ledger = BadSamples()
    ledger.record(10, [bad(1), bad(2), bad(3, shard="00001.tar"), bad(4, reason="empty-file")])
    assert ledger.to_json()["by_reason"] == {
        "truncated-jpeg": {"00000.tar": 2, "00001.tar": 1},
        "empty-file": {"00000.tar": 1},
    }


def test_a_share_above_the_limit_stops_with_the_first_ones_by_name():
    ledger = BadSamples()
    ledger.record(998, [bad(1)])
    ledger.check(0.01, whole=1000)
    ledger.record(2, [bad(number) for number in range(2, 13)])
    with pytest.raises(
        ValueError, match=r"12 of 1000 .*00000\.tar/1: truncated-jpeg.*max_bad_share"
    ):
        ledger.check(0.01, whole=1000)


def test_a_share_of_a_handful_means_nothing_yet():
    ledger = BadSamples()
    ledger.record(99, [bad(number) for number in range(50)])
    ledger.check(0.01, whole=10**6)
    with pytest.raises(ValueError, match="50 of 99"):
        ledger.check(0.01, whole=99)


def test_chance_alone_does_not_stop_a_run():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ledger = BadSamples()
        for _ in range(300):  # up to 30,000 samples, of which 0.9 % are bad
            ledger.record(100, [bad(number) for number in range(rng.binomial(100, 0.009))])
            ledger.check(0.01, whole=10**6)


def test_twice_the_limit_is_noticed_early():
    rng = np.random.default_rng(0)
    ledger = BadSamples()
    with pytest.raises(ValueError, match="cannot be used"):
        for _ in range(40):
            ledger.record(100, [bad(number) for number in range(rng.binomial(100, 0.02))])
            ledger.check(0.01, whole=10**6)


def test_what_is_saved_can_be_loaded(tmp_path):
    ledger = BadSamples()
    ledger.record(100, [bad(number) for number in range(FIRST + 5)])
    ledger.save(tmp_path / "bad_samples.json")
    saved = json.loads((tmp_path / "bad_samples.json").read_text())
    assert BadSamples.from_json(saved).to_json() == ledger.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["bad_samples.json"]


def test_signed_urls_are_saved_without_their_secrets(tmp_path):
    ledger = BadSamples()
    ledger.record(1, [bad("1 https://h/a.jpg?sig=word", shard="c.csv?token=word")])
    ledger.save(tmp_path / "bad_samples.json")
    saved = (tmp_path / "bad_samples.json").read_text()
    assert "word" not in saved and "a.jpg?sig=***" in saved and "c.csv?token=***" in saved


def test_merged_ledgers_are_the_sum():
    one, other, both = BadSamples(), BadSamples(), BadSamples()
    one.record(5, [bad(1)])
    other.record(7, [bad(2), bad(3, shard="b")])
    both.record(12, [bad(1), bad(2), bad(3, shard="b")])
    one.merge(other)
    assert one.to_json() == both.to_json()
