"""Batches are the same however they are read, and survive what happens to workers."""

import dataclasses
import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import string
import time

import numpy as np
import pytest

from clip_jax.config import AugmentConfig
from clip_jax.data import workers as workers_module
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import eval_batches, train_batches
from clip_jax.data.tokenizers.registry import ClipTokenizer, train_sentencepiece
from clip_jax.redaction import redact_logs

STEPS = 6


def digest(batch):
    return hashlib.sha256(batch["image"].tobytes() + batch["tokens"].tobytes()).hexdigest()


@pytest.fixture
def read(reading, settings):
    """Open batches of a source."""

    def _read(
        source,
        *,
        seed=0,
        start_step=0,
        samples_before=None,
        process=(0, 1),
        bad_samples=None,
        **changes,
    ):
        return train_batches(
            source,
            cfg=settings(**changes),
            seed=seed,
            start_step=start_step,
            samples_before=samples_before,
            process_index=process[0],
            process_count=process[1],
            bad_samples=bad_samples,
            **reading,
        )

    return _read


@pytest.fixture
def reference(read, numbered):
    with read(numbered(50, captions=3)) as batches:
        return [digest(next(batches)) for _ in range(STEPS)]


def test_a_batch_has_the_shapes_and_types_of_the_contract(read, numbered):
    with read(numbered(50)) as batches:
        batch = next(batches)
    assert set(batch) == {"image", "tokens"}
    assert batch["image"].shape == (8, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == (8, 6) and batch["tokens"].dtype == np.int32


@pytest.mark.parametrize("threads", [1, 7])
def test_the_number_of_threads_changes_nothing(read, numbered, reference, threads):
    with read(numbered(50, captions=3), threads=threads) as batches:
        assert [digest(next(batches)) for _ in range(STEPS)] == reference


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing_at_any_start(read, numbered, reference, workers):
    with read(numbered(50, captions=3), workers=workers, start_step=1) as batches:
        assert [digest(next(batches)) for _ in range(STEPS - 1)] == reference[1:]


@pytest.mark.parametrize(
    "make",
    [ClipTokenizer, lambda: train_sentencepiece(["one two three four"] * 9, 300, 12)],
    ids=["clip", "sentencepiece"],
)
def test_tokenizers_reach_worker_processes(make, numbered, settings, reading):
    found = []
    for workers in (0, 1):
        options = {**reading, "tokenizer": make(), "seed": 0}
        with train_batches(numbered(50), cfg=settings(workers=workers), **options) as batches:
            found.append(digest(next(batches)))
    assert found[0] == found[1]


@pytest.fixture
def lettered(numbered):
    """A source whose captions are all of the alphabet, which is longer than LONG allows."""

    class Lettered(numbered):
        def __getitem__(self, index):
            caption = " ".join(string.ascii_lowercase)
            return dataclasses.replace(super().__getitem__(index), captions=(caption,))

    return Lettered(8)


LONG = ClipTokenizer(context_length=10)


def words(batch):
    """Places in the alphabet of the eight letters that were kept of each caption."""
    (alphabet,) = LONG.encode([" ".join(string.ascii_lowercase)])
    return np.array([[list(alphabet).index(i) for i in row[1:-1]] for row in batch["tokens"]])


@pytest.mark.parametrize("mask", ["truncate", "random", "block"])
def test_long_captions_are_cut_as_text_mask_says(lettered, settings, reading, mask):
    reading = {**reading, "tokenizer": LONG, "cfg": settings(augment=AugmentConfig(text_mask=mask))}

    def read(seed=0):
        with train_batches(lettered, seed=seed, **reading) as batches:
            return np.concatenate([words(next(batches)) for _ in range(3)])

    kept = read()
    assert (np.diff(kept) > 0).all()  # the words keep their order
    assert (np.diff(kept) == 1).all() == (mask != "random")
    assert (kept[:, 0] == 0).all() == (mask == "truncate")
    assert len(np.unique(kept, axis=0)) > (0 if mask == "truncate" else 5)
    np.testing.assert_array_equal(kept, read())
    assert np.array_equal(kept, read(seed=1)) == (mask == "truncate")
    with eval_batches(lettered, batch_size=8, **reading) as batches:
        assert (words(next(batches)) == np.arange(8)).all()


@pytest.mark.parametrize("start", range(STEPS))
def test_starting_at_a_step_is_as_if_it_had_never_stopped(read, numbered, reference, start):
    with read(numbered(50, captions=3), start_step=start) as batches:
        assert digest(next(batches)) == reference[start]
        assert batches.step == start + 1


@pytest.mark.parametrize("batch_size", [4, 16, 10])
def test_another_batch_size_goes_on_at_the_sample_that_was_reached(read, numbered, batch_size):
    source = numbered(50, captions=3)

    def rows(batches, count):
        parts = [next(batches) for _ in range(count)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    with read(source) as batches:
        expected = rows(batches, 3 + 5)
    with read(source, batch_size=batch_size, start_step=3, samples_before=3 * 8) as batches:
        found = rows(batches, 5 * 8 // batch_size)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array[3 * 8 :][: len(found[name])])


def test_starting_late_reads_nothing_before(read, numbered):
    touched = []

    class Watched(numbered):
        def __getitem__(self, index):
            touched.append(index)
            return super().__getitem__(index)

    with read(Watched(50), start_step=10**9) as batches:
        next(batches)
    assert len(touched) <= 3 * 8  # this batch and what is read ahead


def test_seeds_give_different_batches(read, numbered, reference):
    with read(numbered(50, captions=3), seed=1) as batches:
        assert digest(next(batches)) != reference[0]


def test_a_killed_worker_is_replaced_and_the_order_goes_on(read, numbered, reference):
    with read(numbered(50, captions=3), workers=2) as batches:
        found = [digest(next(batches)) for _ in range(2)]
        victim = next(p for p in multiprocessing.active_children() if workers_module.NAME in p.name)
        os.kill(victim.pid, signal.SIGKILL)
        found += [digest(next(batches)) for _ in range(STEPS - 2)]
    assert found == reference


def test_a_hung_worker_is_replaced_and_the_order_goes_on(read, numbered, reference, monkeypatch):
    with read(numbered(50, captions=3), workers=1) as batches:
        found = [digest(next(batches)) for _ in range(2)]
        victim = next(p for p in multiprocessing.active_children() if workers_module.NAME in p.name)
        monkeypatch.setattr(workers_module, "STALL_SECONDS", 3.0)
        os.kill(victim.pid, signal.SIGSTOP)
        found += [digest(next(batches)) for _ in range(STEPS - 2)]
    assert found == reference


def test_a_worker_that_starts_slowly_is_not_taken_for_hung(read, numbered, reference, monkeypatch):
    monkeypatch.setattr(workers_module, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(workers_module, "TICK_SECONDS", 0.1)
    starts = []
    start = workers_module._Worker._start
    monkeypatch.setattr(
        workers_module._Worker, "_start", lambda self: (starts.append(1), start(self))
    )
    # Importing numpy and the rest in a new process takes far longer than the limit.
    with read(numbered(50, captions=3), workers=1) as batches:
        assert digest(next(batches)) == reference[0]
    assert len(starts) == 1


def test_no_shared_memory_has_a_name_that_a_kill_could_leave(read, numbered):
    before = set(os.listdir("/dev/shm"))
    with read(numbered(50), workers=2) as batches:
        next(batches)
        # Names may go meanwhile: those of what a library of another test left behind.
        assert set(os.listdir("/dev/shm")) <= before


def test_closing_leaves_no_process_and_no_thread(read, numbered):
    with read(numbered(50), workers=2) as batches:
        next(batches)
    deadline = time.time() + 5
    while time.time() < deadline and multiprocessing.active_children():
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_bad_samples_are_counted_and_the_order_of_the_others_stays(read, numbered, ids):
    bad = frozenset({7, 31})
    bad_samples = BadSamples()
    with read(numbered(400)) as clean, read(numbered(400, bad), bad_samples=bad_samples) as batches:
        for _ in range(50):  # one epoch
            expected, found = ids(next(clean)), ids(next(batches))
            assert all(e == f or e in bad for e, f in zip(expected, found))
    assert bad_samples.to_json()["seen"] == 400
    assert bad_samples.to_json()["worst_shards"] == {"out-of-sorts": {"shard-1": 2}}


def test_bad_samples_are_counted_in_worker_processes_too(read, numbered):
    bad_samples = BadSamples()
    with read(
        numbered(80, frozenset({7})), workers=2, bad_samples=bad_samples, max_bad_share=0.5
    ) as batches:
        for _ in range(10):
            next(batches)
    assert (bad_samples.seen, bad_samples.bad) == (80, 1)


@pytest.mark.parametrize("masked", [True, False])
def test_worker_processes_mask_their_logs_where_this_one_does(read, numbered, capfd, masked):
    class Talking(numbered):
        def __getitem__(self, index):
            logging.getLogger("storage").warning("reading https://host/%d?sig=word", index)
            return super().__getitem__(index)

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    try:
        if masked:
            redact_logs()
        with read(Talking(8), workers=1) as batches:
            next(batches)
    finally:
        logging.setLogRecordFactory(before)
    shown = capfd.readouterr().err
    assert "reading https://host/3?sig=" in shown and ("word" in shown) != masked


def test_too_many_bad_samples_stop_the_run_with_their_names(read, numbered):
    with (
        read(numbered(400, frozenset(range(0, 400, 10)))) as batches,
        pytest.raises(ValueError, match=r"of 1\d\d samples .*out-of-sorts.*n/\d+0: out-of-sorts"),
    ):
        for _ in range(50):
            next(batches)


def test_of_a_small_source_one_epoch_decides(read, numbered):
    with read(numbered(24, frozenset({3}))) as batches:
        next(batches), next(batches)
        with pytest.raises(ValueError, match="1 of 24 samples"):
            next(batches)


def test_a_mistake_of_a_source_is_raised_as_it_is(read, numbered):
    class Broken(numbered):
        def __getitem__(self, index):
            raise FileNotFoundError("00007.tar is gone")

    for workers in (0, 1):
        gone = pytest.raises(FileNotFoundError, match=r"00007\.tar is gone")
        with read(Broken(50), workers=workers) as batches, gone:
            next(batches)


def test_a_mixture_keeps_its_proportions_in_every_batch(read, numbered):
    sources = [numbered(10), numbered(30, tag=1)]
    with read(sources, weights=(0.25, 0.75)) as batches:
        for _ in range(10):
            assert next(batches)["image"][:, 0, 0, 2].sum() == 6


def test_the_reader_does_not_run_away_from_a_slow_consumer(read, numbered):
    touched = []

    class Watched(numbered):
        def __getitem__(self, index):
            touched.append(index)
            return super().__getitem__(index)

    with read(Watched(5000)) as batches:
        next(batches)
        time.sleep(0.3)
        assert len(touched) <= 8 + 2 * 8 + 2


@pytest.fixture
def evaluate(reading, settings):
    def _evaluate(
        source, *, batch_size=8, process=(0, 1), bad_samples=None, max_samples=None, **changes
    ):
        return eval_batches(
            source,
            cfg=settings(**changes),
            batch_size=batch_size,
            max_samples=max_samples,
            process_index=process[0],
            process_count=process[1],
            bad_samples=bad_samples,
            **reading,
        )

    return _evaluate


def test_evaluation_sees_each_sample_once_with_a_masked_rest(evaluate, numbered, ids):
    with evaluate(numbered(21)) as batches:
        found = list(batches)
    assert [len(batch["mask"]) for batch in found] == [8, 8, 8]
    masks = np.concatenate([batch["mask"] for batch in found])
    indices = np.concatenate([batch["index"] for batch in found])
    labels = np.concatenate([batch["label"] for batch in found])
    assert masks.tolist() == [True] * 21 + [False] * 3
    assert indices.tolist() == [*range(21), -1, -1, -1]
    assert labels.tolist() == [index % 5 for index in range(21)] + [-1] * 3
    assert [i for batch in found for i in ids(batch)][:21] == list(range(21))


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_every_process_has_as_many_evaluation_batches(evaluate, numbered, processes):
    parts = []
    for index in range(processes):
        with evaluate(numbered(17), process=(index, processes)) as batches:
            parts.append(list(batches))
    assert {len(part) for part in parts} == {3}
    seen = [i for part in parts for batch in part for i in batch["index"][batch["mask"]].tolist()]
    assert sorted(seen) == list(range(17))


def test_a_bad_sample_is_masked_in_evaluation_and_counted(evaluate, numbered):
    bad_samples = BadSamples()
    with evaluate(
        numbered(16, frozenset({5})), bad_samples=bad_samples, max_bad_share=0.5
    ) as batches:
        masks = np.concatenate([batch["mask"] for batch in batches])
    assert masks.tolist() == [index != 5 for index in range(16)]
    assert bad_samples.bad == 1


def test_an_evaluation_batch_that_does_not_divide_is_refused(evaluate, numbered):
    with pytest.raises(ValueError, match=r"evaluation\.batch_size=8 must be a multiple of the 3"):
        evaluate(numbered(16), process=(0, 3))


def test_the_order_of_1000_steps_is_one_for_all_hosts_and_workers(read, numbered, ids):
    source = numbered(1501, frozenset(range(0, 1501, 150)))

    def order(part, *, start=0, stop=1000, **changes):
        found = []
        with read(source, process=part, start_step=start, batch_size=4, **changes) as batches:
            for _ in range(start, stop):
                found.append(ids(next(batches)))
        return found

    whole = order((0, 1))
    for hosts, steps in ((2, 300), (4, 1000)):
        parts = [order((host, hosts), stop=steps) for host in range(hosts)]
        assert [list(itertools.chain(*rows)) for rows in zip(*parts)] == whole[:steps]
    assert order((0, 1), workers=1, stop=100) == whole[:100]
    assert order((0, 1), workers=2) == whole
    assert order((0, 1), workers=2, start=933) == whole[933:]
