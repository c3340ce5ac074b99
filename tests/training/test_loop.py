"""The order of a run: step, log, evaluate, save; and how it ends before its last step."""

import contextlib
import dataclasses
import itertools
import json
import types

import jax.numpy as jnp
import pytest

from clip_jax.config import EvaluationConfig, HealthConfig, LoggingConfig, TrainConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.logger import Progress
from clip_jax.training import loop
from clip_jax.training.loop import TooManySkipped, Trainer
from clip_jax.training.profiling import Profile

CFG = TrainConfig(
    steps=6,
    evaluation=EvaluationConfig(every_steps=3),
    logging=LoggingConfig(every_steps=2, progress=False, loggers=("jsonl",), report=False),
    health=HealthConfig(max_skipped_in_row=3),
)


class Story:
    """Stands for what surrounds a trainer, and writes down what it is asked for."""

    def __init__(self, leave_after: int | None = None):
        self.told, self.leave_after, self.steps = [], leave_after, 0
        self.exit_code, self.end = 75, "done"

    # As the goodput and the watchdog.
    def switch(self, phase):
        pass

    @contextlib.contextmanager
    def phase(self, *args, **kwargs):
        yield

    allow = phase

    def seconds(self):
        return {"stepping": 1.0}

    def beat(self):
        pass

    # As the checkpoints.
    def save(self, step, state, *, metadata, metrics=None, force=False):
        self.metadata = metadata()  # as the real ones do when a save is due
        self.told.append(("save", step, metrics, force))

    # As the preemption.
    def requested(self) -> bool:
        return self.leave_after is not None and self.steps >= self.leave_after


class Batches:
    ledger = None

    def __next__(self):
        self.ledger = {**BadSamples().to_json(), "seen": (self.ledger or {"seen": 0})["seen"] + 8}
        return {}


class Steps(Trainer):
    """A trainer whose model is a counter. `skipped` are the steps that it leaves out."""

    skipped: tuple[int, ...] = ()
    aborted: tuple[int, ...] = ()  # evaluations that a request to leave cut off

    def compile(self):
        counts = {"all": 0, "row": 0}

        def step(state, batch):
            self.goodput.steps = now = state + 1
            self.goodput.told.append(("step", now))
            counts["row"] = counts["row"] + 1 if now in self.skipped else 0
            counts["all"] += now in self.skipped
            return now, {
                "loss": jnp.float32(7 - now),
                "grad_norm": jnp.float32(1),
                "skipped_steps": jnp.int32(counts["all"]),
                "skipped_in_row": jnp.int32(counts["row"]),
            }

        return step

    def evaluate(self, step):
        self.goodput.told.append(("evaluate", step))
        return None if step in self.aborted else {"eval/loss": 1.0}

    def snapshot(self):
        self.goodput.told.append(("snapshot", self.state))


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """`trainer(story)`: a trainer at step 0, inside a run directory of its own."""
    numbers = itertools.count()
    monkeypatch.setattr(loop.run_record, "fingerprint", lambda setup: "0")
    with contextlib.ExitStack() as stack:

        def make(story: Story, *, start: int = 0, cfg: TrainConfig = CFG, **changes) -> Steps:
            run = stack.enter_context(RunDirectory(tmp_path / f"run{next(numbers)}"))
            setup = types.SimpleNamespace(cfg=cfg, schedule=lambda step: 100 + step)
            made = Steps(setup, run, story, story, story, story, state=start)
            made.progress = stack.enter_context(
                Progress(run, cfg.logging, start=start, steps=cfg.steps, batch_size=8, flops=1.0)
            )
            made.profile = Profile(None, run.path)
            for name, value in changes.items():
                setattr(made, name, value)
            return made

        yield make


def test_each_step_is_followed_by_its_evaluation_and_then_its_save(trainer):
    story = Story()
    assert trainer(story).train(0, Batches())
    found = {"eval/loss": 1.0}
    assert story.told == [
        *(("step", 1), ("save", 1, None, False), ("step", 2), ("save", 2, None, False)),
        *(("step", 3), ("evaluate", 3), ("snapshot", 3), ("save", 3, found, False)),
        *(("step", 4), ("save", 4, None, False), ("step", 5), ("save", 5, None, False)),
        *(("step", 6), ("evaluate", 6), ("snapshot", 6), ("save", 6, found, True)),
    ]


def test_a_saved_step_was_logged_and_its_samples_are_accounted_for(trainer):
    story = Story()
    made = trainer(story)
    made.train(0, Batches())
    assert [line["step"] for line in made.run.metrics()] == [2, 4, 6]
    assert [line["loss"] for line in made.run.metrics()] == [5, 3, 1]
    assert story.metadata["ledgers"][0]["seen"] == 6 * 8
    assert story.metadata["config"]["steps"] == 6
    assert made.pending is None


def test_the_learning_rate_that_is_logged_is_that_of_the_steps_taken(trainer):
    made = trainer(Story(), skipped=(3,))
    made.train(0, Batches())
    assert [line["learning_rate"] for line in made.run.metrics()] == [101, 102, 104]
    assert [line["skipped_steps"] for line in made.run.metrics()] == [0, 1, 1]


def test_a_run_stops_after_too_many_skipped_steps_in_a_row_and_not_before(trainer):
    story = Story()
    with pytest.raises(TooManySkipped, match=r"3 steps in a row, the last being step 5") as error:
        trainer(story, skipped=(3, 4, 5)).train(0, Batches())
    for named in ("health.max_skipped_in_row", "optimizer.learning_rate", "optimizer.clip_norm"):
        assert named in str(error.value)
    assert ("save", 5, None, False) not in story.told
    assert trainer(Story(), skipped=(1, 2, 4, 5)).train(0, Batches())


def test_a_request_to_leave_is_answered_after_the_step_by_a_save(trainer):
    story = Story(leave_after=2)
    assert not trainer(story).train(0, Batches())
    assert story.told[-2:] == [("save", 2, None, False), ("save", 2, None, True)]
    assert story.end == "preempted"
    story = Story(leave_after=2)
    story.exit_code = 130
    trainer(story).train(0, Batches())
    assert story.end == "interrupted"


def test_a_request_to_leave_at_the_last_step_finds_the_run_done(trainer):
    assert trainer(Story(leave_after=6)).train(0, Batches())


def test_an_evaluation_that_was_cut_off_is_made_up_for_by_the_next_start(trainer):
    story = Story(leave_after=3)
    assert not trainer(story, aborted=(3,)).train(0, Batches())
    assert story.told[-1] == ("save", 3, None, True)
    again = Story()
    assert trainer(again, start=3).rerun_missed_evaluation(3)
    assert again.told == [("evaluate", 3), ("snapshot", 3)]
    measured = Story()
    assert trainer(measured, start=3, measured=True).rerun_missed_evaluation(3)
    assert ("evaluate", 3) not in measured.told


def test_a_start_keeps_the_matrix_before_any_training_and_evaluates_nothing(trainer):
    story = Story()
    assert trainer(story).rerun_missed_evaluation(0)
    assert story.told == [("snapshot", 0)]


@pytest.mark.parametrize(
    ("every", "due"),
    [(None, {10}), (0, set()), (1, set(range(1, 11))), (4, {4, 8, 10}), (99, {10})],
)
def test_the_last_step_is_a_time_to_evaluate_unless_none_is(every, due):
    assert {step for step in range(1, 11) if Trainer.is_time(every, step, 10)} == due


def test_the_account_of_bad_samples_is_left_in_the_run(trainer):
    made = trainer(Story())
    made.train(0, Batches())
    made.report()
    assert json.loads((made.run.path / "bad_samples.json").read_text())["seen"] == 48
    assert not (made.run.path / "report.html").exists()
    made.setup.cfg = dataclasses.replace(CFG, logging=dataclasses.replace(CFG.logging, report=True))
    made.report()
    assert "Devices" in (made.run.path / "report.html").read_text()
