"""The order of a run: step, log, save, evaluate; and how it ends before its last step."""

import contextlib
import dataclasses
import json
import logging
import types

import jax.numpy as jnp
import pytest

from clip_jax.config import (
    CheckpointConfig,
    EvaluationConfig,
    HealthConfig,
    LoggingConfig,
    TrainConfig,
)
from clip_jax.data.bad_samples import BadSamples
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.progress import Progress
from clip_jax.training import evaluations, loop
from clip_jax.training.evaluations import EvaluationFailed, Evaluations, is_time
from clip_jax.training.loop import Parts
from clip_jax.training.position import Position
from clip_jax.training.profiling import Profile
from clip_jax.training.step_log import StepLog, TooManySkipped, make_hooks

CFG = TrainConfig(
    steps=6,
    evaluation=EvaluationConfig(every_steps=3),
    logging=LoggingConfig(every_steps=2, progress=False, loggers=("jsonl",), report=False),
    health=HealthConfig(max_skipped_in_row=3),
)


class Story:
    """Stands for what surrounds the steps, and writes down what it is asked for."""

    def __init__(self, leave_after: int | None = None):
        self.events, self.leave_after, self.steps = [], leave_after, 0
        self.exit_code, self.signal_name, self.end = 75, "SIGTERM", "done"
        self.evaluated = set()
        self.waits_in_vain = False  # asked to leave while no batch comes

    # As the goodput and the watchdog.
    def switch(self, phase):
        pass

    @contextlib.contextmanager
    def phase(self, *args, **kwargs):
        yield

    allow = phase

    def seconds(self):
        return {"stepping": 1.0}

    def beat(self, doing=""):
        pass

    # As the checkpoints.
    def save(self, step, state, *, metadata, due=False, force=False):
        self.metadata = metadata()  # as the real ones do when a save is due
        self.events.append(("save", step, due, force))

    def wait(self):
        pass

    def record(self, step, metrics):
        self.events.append(("record", step, metrics))

    def is_evaluated(self, step):
        return step in self.evaluated

    # As the preemption.
    def requested_alone(self) -> bool:
        return self.waits_in_vain

    def requested(self) -> bool:
        return self.leave_after is not None and self.steps >= self.leave_after


class Batches:
    """`last` is the last batch; then none comes, or `error` does."""

    bad_samples = None

    def __init__(self, last: int = 1000, error: Exception | None = None):
        self.last, self.error = last, error

    def take(self, *, leave):
        if (self.bad_samples or {}).get("seen", 0) == 8 * self.last:
            if self.error:
                raise self.error
            assert leave()
            return None
        self.bad_samples = {
            **BadSamples().to_json(),
            "seen": (self.bad_samples or {"seen": 0})["seen"] + 8,
        }
        return {}


def counter(story: Story, skipped: tuple[int, ...]):
    """A train step whose state is a counter. `skipped` are the steps that it skips."""
    counts = {"all": 0, "row": 0}

    def step(state, batch):
        story.steps = now = state + 1
        story.events.append(("step", now))
        counts["row"] = counts["row"] + 1 if now in skipped else 0
        counts["all"] += now in skipped
        return now, {
            "loss": jnp.float32(7 - now),
            "grad_norm": jnp.float32(1),
            "update_norm": jnp.float32(0.5),
            "skipped_steps": jnp.int32(counts["all"]),
            "skipped_in_row": jnp.int32(counts["row"]),
        }

    return step


class Evaluators:
    """`aborted` are the evaluations that a request to leave cut off, `broken` those that fail."""

    def __init__(self, story: Story, aborted=(), broken=()):
        self.story, self.aborted, self.broken = story, aborted, broken

    def __call__(self, variables, *, should_stop):
        self.story.events.append(("evaluate", variables))
        if variables in self.broken:
            raise ValueError("30 of 48 samples are bad")
        metrics = {"eval/loss": 1.0}
        return None if variables in self.aborted else types.SimpleNamespace(metrics=metrics)


class Counter(int):
    """A state."""

    step = ema_variables = property(int)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`made(story)`: the parts of a run of 6 steps, its steps, and its directory."""
    monkeypatch.setattr(loop.run_record, "data_record", lambda setup: {"fingerprint": "0"})
    monkeypatch.setattr(evaluations, "save_evaluation", lambda *a: None)

    def snapshot(self, step, state):
        if step in (0, 3, 6):
            self._checkpoints.events.append(("snapshot", step))

    monkeypatch.setattr(Evaluations, "_snapshot_if_due", snapshot)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(RunDirectory(tmp_path / "run"))

        def make(story, *, start=0, cfg=CFG, skipped=(), hooks=(), **evaluators):
            setup = types.SimpleNamespace(
                cfg=cfg,
                evaluators=Evaluators(story, **evaluators),
                schedule=lambda step: 100 + step,
            )
            progress = stack.enter_context(
                Progress(run, cfg.logging, start=start, steps=cfg.steps, batch_size=8, flops=1.0)
            )
            watch = {"goodput": story, "preemption": story, "watchdog": story}
            parts = Parts(
                setup=setup,
                position=Position(start, 8 * start, 8),
                checkpoints=story,
                progress=progress,
                log=StepLog(progress, setup.schedule, cfg.health, hooks=hooks),
                evaluate=Evaluations(setup, run, story, progress=progress, **watch),
                profile=Profile(None, run.path),
                **watch,
            )
            step = counter(story, skipped)
            return types.SimpleNamespace(
                parts=parts,
                run=run,
                fit=lambda batches=None: loop.fit(
                    parts,
                    Counter(start),
                    batches or Batches(),
                    lambda state, batch: (Counter((r := step(state, batch))[0]), r[1]),
                ),
            )

        yield make


def test_each_step_is_saved_before_it_is_evaluated(made):
    story = Story()
    assert made(story).fit() == 0
    found = {"eval/loss": 1.0}
    plain = [(("step", k), ("save", k, False, False)) for k in range(7)]
    assert story.events == [
        *(*plain[1], *plain[2], *plain[3]),
        *(("evaluate", 3), ("record", 3, found), ("snapshot", 3)),
        *(*plain[4], *plain[5], ("step", 6), ("save", 6, False, True)),
        *(("evaluate", 6), ("record", 6, found), ("snapshot", 6)),
    ]


def test_what_may_be_the_best_is_saved_before_that_is_known(made):
    story = Story()
    keeps = CheckpointConfig(keep_best_by="eval/loss")
    made(story, cfg=dataclasses.replace(CFG, checkpoint=keeps)).fit()
    saves = [event for event in story.events if event[0] == "save"]
    assert [due for _, _, due, _ in saves] == [False, False, True, False, False, True]


def test_an_evaluation_that_fails_ends_no_training_and_the_run_says_so_at_its_end(made, caplog):
    story = Story()
    run = made(story, broken=(3,))
    assert run.fit() == 0
    assert ("save", 6, False, True) in story.events
    assert [e for e in story.events if e[0] == "record"] == [("record", 6, {"eval/loss": 1.0})]
    assert "The evaluation of step 3 failed; the training continues" in caplog.text
    with pytest.raises(EvaluationFailed, match=r"evaluation of step 3 failed: 30 of 48 .* step 6"):
        run.parts.evaluate.check()
    sound = made(Story())
    sound.fit()
    sound.parts.evaluate.check()


def test_a_saved_step_was_logged_and_its_samples_are_counted(made):
    story = Story()
    run = made(story)
    run.fit()
    lines = [line for line in run.run.metrics() if "loss" in line]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 5), (4, 3), (6, 1)]
    assert story.metadata["bad_samples"][0]["seen"] == 6 * 8
    assert story.metadata["config"]["steps"] == 6


def test_the_learning_rate_that_is_logged_is_that_of_the_step_whatever_was_skipped(made):
    run = made(Story(), skipped=(3,))
    run.fit()
    lines = [line for line in run.run.metrics() if "loss" in line]
    assert [line["learning_rate"] for line in lines] == [101, 103, 105]
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1]


def test_a_run_stops_after_too_many_skipped_steps_in_a_row_and_not_before(made):
    story = Story()
    with pytest.raises(TooManySkipped, match=r"3 steps in a row, the last being step 5") as error:
        made(story, skipped=(3, 4, 5)).fit()
    for named in ("health.max_skipped_in_row", "optimizer.learning_rate", "optimizer.eps"):
        assert named in str(error.value)
    assert ("save", 5, False, False) not in story.events
    assert made(Story(), skipped=(1, 2, 4, 5)).fit() == 0


def test_a_request_to_leave_is_answered_after_the_step_by_a_save(made, caplog):
    story = Story(leave_after=2)
    with caplog.at_level(logging.WARNING):
        assert made(story).fit() == 75
    assert story.events[-2:] == [("save", 2, False, False), ("save", 2, False, True)]
    assert story.end == "preempted"
    assert "Preempted (SIGTERM): saving a checkpoint at step 2" in caplog.text
    story = Story(leave_after=2)
    story.exit_code, story.signal_name = 130, "SIGINT"
    assert made(story).fit() == 130
    assert story.end == "interrupted"
    assert "Interrupted (SIGINT): saving a checkpoint at step 2" in caplog.text


def test_a_request_to_leave_is_answered_while_no_batch_comes(made):
    story = Story()
    story.waits_in_vain = True
    assert made(story).fit(Batches(last=2)) == 75
    assert story.events[-2:] == [("save", 2, False, False), ("save", 2, False, True)]
    at_the_start = Story()
    at_the_start.waits_in_vain = True
    assert made(at_the_start).fit(Batches(last=0)) == 75
    assert at_the_start.events == []


def test_data_that_fail_end_a_run_after_the_steps_before_were_saved(made):
    story = Story()
    with pytest.raises(ValueError, match="too many are bad"):
        made(story).fit(Batches(last=2, error=ValueError("too many are bad")))
    assert story.events[-1] == ("save", 2, True, False)
    assert story.metadata["samples"] == 2 * 8


def test_a_request_to_leave_at_the_last_step_finds_the_run_done(made):
    assert made(Story(leave_after=6)).fit() == 0


def test_an_evaluation_that_was_cut_off_is_run_by_the_next_start(made):
    story = Story(leave_after=3)
    assert made(story, aborted=(3,)).fit() == 75
    assert story.events[-1] == ("save", 3, False, True)
    again = Story()
    assert made(again, start=3).parts.evaluate.rerun_missed(3, Counter(3))
    assert again.events == [("evaluate", 3), ("record", 3, {"eval/loss": 1.0}), ("snapshot", 3)]
    evaluated = Story()
    evaluated.evaluated.add(3)
    assert made(evaluated, start=3).parts.evaluate.rerun_missed(3, Counter(3))
    assert evaluated.events == [("snapshot", 3)]


def test_a_start_keeps_the_matrix_before_any_training_and_evaluates_nothing(made):
    story = Story()
    assert made(story).parts.evaluate.rerun_missed(0, Counter(0))
    assert story.events == [("snapshot", 0)]


@pytest.mark.parametrize(
    ("every", "due"),
    [(None, {10}), (0, set()), (1, set(range(1, 11))), (4, {4, 8, 10}), (99, {10})],
)
def test_the_last_step_is_a_time_to_evaluate_unless_none_is(every, due):
    assert {step for step in range(1, 11) if is_time(every, step, 10)} == due


def test_a_hook_is_called_after_each_step_and_what_it_returns_is_logged(made):
    seen = []

    def hook(step, state, metrics):
        seen.append((step, int(state), float(metrics["loss"])))
        return {"seen": step * 10}

    run = made(Story(), hooks=[hook])
    run.fit()
    assert seen == [(k, k, 7 - k) for k in range(1, 7)]
    assert [line["seen"] for line in run.run.metrics() if "loss" in line] == [20, 40, 60]


def test_a_hook_that_fails_is_not_called_again_and_ends_nothing(made, caplog):
    calls = []

    def hook(step, state, metrics):
        calls.append(step)
        raise RuntimeError("no display")

    assert made(Story(), hooks=[hook]).fit() == 0
    assert calls == [1]
    assert "<locals>.hook failed at step 1 and is not called again" in caplog.text


@pytest.mark.parametrize("value", [jnp.zeros(3), "high", None, [1.0]])
def test_what_a_hook_returns_that_is_no_number_ends_nothing(made, caplog, value):
    run = made(Story(), hooks=[lambda step, state, metrics: {"own": value}])
    assert run.fit() == 0
    assert "own is a" in caplog.text and "is not called again" in caplog.text
    assert [line["step"] for line in run.run.metrics() if "loss" in line] == [2, 4, 6]


def test_hooks_are_named_by_their_modules():
    assert make_hooks(("math:sqrt",))[0](4) == 2
    with pytest.raises(ValueError, match=r"logging.hooks=math:pi is a float"):
        make_hooks(("math:pi",))
    with pytest.raises(ValueError, match=r"logging.hooks='nowhere.at_all:f'.*cannot be imported"):
        make_hooks(("nowhere.at_all:f",))


def test_the_counts_of_bad_samples_are_written_to_the_run(made):
    run = made(Story())
    counts = {**BadSamples().to_json(), "seen": 48}
    loop.report(run.parts, run.run, counts)
    assert json.loads((run.run.path / "bad_samples.json").read_text())["seen"] == 48
    assert not (run.run.path / "report.html").exists()
    shown = dataclasses.replace(CFG, logging=dataclasses.replace(CFG.logging, report=True))
    run.parts.setup.cfg = shown
    loop.report(run.parts, run.run, counts)
    assert "Devices" in (run.run.path / "report.html").read_text()


@pytest.mark.parametrize("name", ["bad_samples", "ledgers"])  # as earlier versions named them
def test_a_resume_restores_the_counts_of_bad_samples_and_rewinds_the_metrics(made, name):
    run, seen = made(Story()).run, []
    for step in (2, 4, 6):
        run.append_metrics({"step": step, "loss": 1.0})
    counts, seconds = {**BadSamples().to_json(), "seen": 32}, {"stepping": 3.0}
    restored = types.SimpleNamespace(
        step=4, state="state", metadata={name: [counts], "goodput": seconds}
    )
    checkpoints = types.SimpleNamespace(
        restore=lambda like: restored, is_evaluated=lambda step: False
    )
    goodput = types.SimpleNamespace(resumed_from=seen.append)
    setup = types.SimpleNamespace(abstract_state=None, cfg=CFG, evaluators=None)
    found = loop.restore_or_start(setup, run, checkpoints, goodput)
    B = CFG.data.batch_size
    assert found == ("state", Position(4, 4 * B, B), counts)
    assert [line["step"] for line in run.metrics()] == [2, 4]
    assert seen == [seconds]
