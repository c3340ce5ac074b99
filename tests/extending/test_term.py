"""Terms of the loss from outside the tree are trained, logged, evaluated, planned and resumed, with parts of their own."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from clip_jax.config import DataConfig, LossConfig, MeshConfig, ModelSettings, TrainConfig
from clip_jax.load import load_to_host
from clip_jax.losses.objective import make_objective
from clip_jax.models.clip import CLIP, create_model
from clip_jax.planning.steps import make_step
from clip_jax.runs.trained_variables import read_variables
from clip_jax.training.initial_weights import with_given_heads
from clip_jax.training.state import new_state

TERMS = (
    *("outside.term:UNIFORMITY=0.5", "outside.term:LENGTHS=2"),
    *("outside.head:CAPTION=0.3", "outside.head:DISTILL=0.2"),
)


def test_terms_from_outside_are_trained_over_micro_batches_on_a_mesh_and_evaluated(run):
    for line in run.lines.values():
        weighted = 0.5 * line["loss/uniformity"] + 2 * line["loss/lengths"]
        weighted += 0.3 * line["loss/caption"] + 0.2 * line["loss/distill"]
        assert line["loss"] == pytest.approx(line["loss/softmax"] + weighted, rel=1e-5)
        assert 0 < line["mean_length"] <= 1
    # The evaluation's loss is the run's own, but for what embeddings alone do not give.
    last = run.lines[4]
    expected = last["eval/loss/softmax"] + 0.5 * last["eval/loss/uniformity"]
    assert last["eval/loss"] == pytest.approx(expected, rel=1e-5)
    assert "eval/loss/caption" not in last


def test_a_decoder_learns_a_teacher_does_not_and_what_is_loaded_has_neither(run):
    assert run.lines[4]["loss/caption"] < run.lines[1]["loss/caption"]
    saved, _ = read_variables(run.path / "checkpoints", flat=())
    assert saved["params"].keys() == {"image", "text", "logit_scale", "decoder", "teacher"}
    jax.tree.map(np.testing.assert_array_equal, saved["params"]["teacher"]["clip"], run.teacher)
    assert load_to_host(run.path).variables["params"].keys() == {"image", "text", "logit_scale"}


def test_a_run_with_terms_from_outside_is_planned(teacher):
    cfg = TrainConfig(
        model=ModelSettings(name="outside.tower:CONFIG"),
        loss=LossConfig(kind="sigmoid", terms=TERMS),
        data=DataConfig(batch_size=16),
        mesh=MeshConfig(fsdp=2),
    )
    step = make_step(cfg, jax.devices())
    assert "logit_bias" in step.state.params
    assert step.lower()
    assert step.state.params.keys() >= {"decoder"} and step.state.frozen.keys() == {"teacher"}


def test_a_head_of_another_name_or_shape_is_refused(teacher, monkeypatch):
    from outside import head

    for others in ((head.DecoderConfig(name="text"),), (head.TeacherConfig(name="decoder"),)):
        monkeypatch.setattr(head, "DISTILL", dataclasses.replace(head.DISTILL, heads=others))
        with pytest.raises(ValueError, match="each head needs a name of its own"):
            make_objective(LossConfig(terms=TERMS))

    class Torn(head.TeacherConfig):
        def weights(self):
            return {"params": {"clip": {"image": np.zeros(3)}}}

    class Short(head.DecoderConfig):
        def module(self, model, compute):
            return lambda outputs, images, tokens, train: {"next_token": tokens[1:]}

    def state(each):
        model = CLIP(create_model("outside.tower:CONFIG").config, heads=(each,))
        make = lambda key: new_state(key, model=model, optimizer=optax.identity())  # noqa: E731
        return jax.eval_shape(make, jax.random.key(0))

    with pytest.raises(
        ValueError, match="the weights of the head teacher are not those of its mod"
    ):
        with_given_heads(state(Torn()), (Torn(),))
    with pytest.raises(
        ValueError, match="head decoder must return a dictionary of arrays with 1 r"
    ):
        state(Short())
