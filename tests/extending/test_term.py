"""Terms of the loss from outside the tree are trained, logged, evaluated, planned and resumed."""

import jax
import pytest

from clip_jax.config import DataConfig, LossConfig, MeshConfig, ModelSettings, TrainConfig
from clip_jax.planning.steps import make_step

TERMS = ("outside.term:UNIFORMITY=0.5", "outside.term:LENGTHS=2")


def test_terms_from_outside_train_over_micro_batches_on_a_mesh_and_resume(
    train, lose_since, tmp_path, caplog
):
    settings = ("--loss.terms", *TERMS)
    whole = train(tmp_path, 4, *settings)
    lose_since(tmp_path, 2)
    resumed = train(tmp_path, 4, *settings)
    for step in range(1, 5):
        line = whole[step]
        weighted = 0.5 * line["loss/uniformity"] + 2 * line["loss/lengths"]
        assert line["loss"] == pytest.approx(line["loss/softmax"] + weighted, rel=1e-5)
        assert 0 < line["mean_length"] <= 1
        assert resumed[step]["loss"] == line["loss"]
    # The evaluation's loss is the run's own, but for what embeddings alone do not give.
    expected = whole[4]["eval/loss/softmax"] + 0.5 * whole[4]["eval/loss/uniformity"]
    assert whole[4]["eval/loss"] == pytest.approx(expected, rel=1e-5)
    assert "without ['lengths']: it needs more than embeddings" in caplog.text


def test_a_run_with_terms_from_outside_is_planned():
    cfg = TrainConfig(
        model=ModelSettings(name="ViT-test"),
        loss=LossConfig(kind="sigmoid", terms=TERMS),
        data=DataConfig(batch_size=16),
        mesh=MeshConfig(fsdp=2),
    )
    step = make_step(cfg, jax.devices())
    assert "logit_bias" in step.state.params
    assert step.lower()
