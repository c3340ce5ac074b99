"""Bad samples are counted by reason and shard, and stop a run when they are too many."""

import json
from collections import Counter

import numpy as np
import pytest

from clip_jax.data.bad_samples import FIRST, WORST, BadSamples
from clip_jax.data.samples import BadSample


def bad(number, reason="truncated-jpeg", shard="00000.tar"):
    return BadSample(reason, key=f"{shard}/{number}", shard=shard)


def test_counts_are_by_reason_and_shard():
    bad_samples = BadSamples()
    bad_samples.record(10, [bad(1), bad(2), bad(3, shard="00001.tar"), bad(4, reason="empty-file")])
    assert bad_samples.to_json()["by_reason"] == {"truncated-jpeg": 3, "empty-file": 1}
    assert bad_samples.to_json()["worst_shards"] == {
        "truncated-jpeg": {"00000.tar": 2, "00001.tar": 1},
        "empty-file": {"00000.tar": 1},
    }


def test_a_share_above_the_limit_stops_with_the_first_ones_by_name():
    bad_samples = BadSamples()
    bad_samples.record(998, [bad(1)])
    bad_samples.check(0.01, whole=1000)
    bad_samples.record(2, [bad(number) for number in range(2, 13)])
    with pytest.raises(
        ValueError, match=r"12 of 1000 .*00000\.tar/1: truncated-jpeg.*max_bad_share"
    ):
        bad_samples.check(0.01, whole=1000)


def test_a_share_of_a_handful_means_nothing_yet():
    bad_samples = BadSamples()
    bad_samples.record(99, [bad(number) for number in range(50)])
    bad_samples.check(0.01, whole=10**6)
    with pytest.raises(ValueError, match="50 of 99"):
        bad_samples.check(0.01, whole=99)


def test_chance_alone_does_not_stop_a_run():
    rng = np.random.default_rng(0)
    for _ in range(20):
        bad_samples = BadSamples()
        for _ in range(300):  # up to 30,000 samples, of which 0.9 % are bad
            bad_samples.record(100, [bad(number) for number in range(rng.binomial(100, 0.009))])
            bad_samples.check(0.01, whole=10**6)


def test_twice_the_limit_is_noticed_early():
    rng = np.random.default_rng(0)
    bad_samples = BadSamples()
    with pytest.raises(ValueError, match="cannot be used"):
        for _ in range(40):
            bad_samples.record(100, [bad(number) for number in range(rng.binomial(100, 0.02))])
            bad_samples.check(0.01, whole=10**6)


def test_what_is_saved_can_be_read_back(tmp_path):
    bad_samples = BadSamples()
    bad_samples.record(100, [bad(number) for number in range(FIRST + 5)])
    bad_samples.save(tmp_path / "bad_samples.json")
    saved = json.loads((tmp_path / "bad_samples.json").read_text())
    assert BadSamples.from_json(saved).to_json() == bad_samples.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["bad_samples.json"]


def test_the_first_of_a_reason_is_named_however_late_it_comes():
    bad_samples = BadSamples()
    bad_samples.record(100, [bad(number) for number in range(FIRST + 5)])
    late = BadSample("layout-label-43-of-43", key="late", shard="0.tar")
    bad_samples.record(100, [late, late])
    whole = BadSamples()
    whole.merge(bad_samples)
    for each in (bad_samples, whole):
        assert each.first[FIRST:] == [("late", "layout-label-43-of-43")]


def test_the_account_stays_small_and_exact_with_any_number_of_shards():
    bad_samples = BadSamples()
    for number in range(3000):
        shards = [number, 7, number % 5]
        bad_samples.record(100, [bad(number, reason=f"r{n}", shard=f"{shard:05}.tar") for n, shard in enumerate(shards)])  # fmt: skip
    counts = bad_samples.to_json()
    assert len(json.dumps(counts)) < 5000
    assert counts["by_reason"] == {"r0": 3000, "r1": 3000, "r2": 3000} and counts["bad"] == 9000
    assert counts["worst_shards"]["r1"] == {"00007.tar": 3000}
    assert sorted(counts["worst_shards"]["r2"].values()) == [600] * 5
    again = BadSamples.from_json(counts)
    assert again.to_json() == counts
    again.record(1, [bad(0, reason="r0", shard="x")])
    assert again.by_reason["r0"] == 3001


def test_the_worst_shards_are_those_with_the_most():
    bad_samples, expected = BadSamples(), Counter()
    for shard in np.random.default_rng(0).zipf(1.5, 4000).tolist():
        bad_samples.record(1, [bad(0, shard=f"{shard}")])
        expected[f"{shard}"] += 1
    found = bad_samples.to_json()["worst_shards"]["truncated-jpeg"]
    assert sorted(found.values()) == sorted(count for _, count in expected.most_common(WORST))


def test_an_account_of_an_earlier_version_goes_on():
    old = {
        "seen": 900, "bad": 3, "by_reason": {"torn": {"a": 2, "b": 1}},
        "first": [{"key": "a/1", "reason": "torn"}],
    }  # fmt: skip
    counts = BadSamples.from_json(old).to_json()
    assert counts["by_reason"] == {"torn": 3} and counts["worst_shards"] == old["by_reason"]
    assert (counts["seen"], counts["bad"], counts["first"]) == (900, 3, old["first"])


def test_each_bad_sample_is_a_line_of_a_file_and_none_twice_after_a_resume(tmp_path):
    file = tmp_path / "bad_samples.0.jsonl"
    bad_samples = BadSamples.start(file)
    bad_samples.record(100, [bad(1), bad(2)])
    checkpoint = bad_samples.to_json()
    bad_samples.record(100, [bad(3)])  # after the checkpoint
    with file.open("a") as torn:
        torn.write('{"seen": 3')
    bad_samples = BadSamples.from_json(checkpoint, file)
    bad_samples.record(100, [bad(3)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"00000.tar/{n}" for n in (1, 2, 3)]
    assert [line["seen"] for line in lines] == [100, 100, 200]
    BadSamples.start(file)
    assert not file.exists()


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    bad_samples = BadSamples(tmp_path / "gone" / "bad_samples.0.jsonl")
    bad_samples.record(100, [bad(1)])
    bad_samples.record(100, [bad(2)])
    assert bad_samples.bad == 2 and caplog.text.count("bad samples are only counted") == 1


def test_signed_urls_are_saved_without_their_secrets(tmp_path):
    bad_samples = BadSamples()
    bad_samples.record(1, [bad("1 https://h/a.jpg?sig=word", shard="c.csv?token=word")])
    bad_samples.save(tmp_path / "bad_samples.json")
    saved = (tmp_path / "bad_samples.json").read_text()
    assert "word" not in saved and "a.jpg?sig=***" in saved and "c.csv?token=***" in saved


def test_merged_ledgers_are_the_sum():
    one, other, both = BadSamples(), BadSamples(), BadSamples()
    one.record(5, [bad(1)])
    other.record(7, [bad(2), bad(3, shard="b")])
    both.record(12, [bad(1), bad(2), bad(3, shard="b")])
    one.merge(other)
    assert one.to_json() == both.to_json()
