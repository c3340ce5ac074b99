"""The step that is planned is the one that is trained."""

import jax
import pytest

from clip_jax.config import DataConfig, MeshConfig, ModelSettings, TrainConfig
from clip_jax.planning.steps import make_step, refusals


def run(**changes) -> TrainConfig:
    return TrainConfig(
        **{"model": ModelSettings(name="ViT-test"), "data": DataConfig(batch_size=64)} | changes
    )


def test_the_program_is_lowered_without_data_or_arrays():
    step = make_step(run(mesh=MeshConfig(fsdp=2)), jax.devices())
    text = step.lower().as_text()
    assert "jit_train_step" in text
    assert '"fsdp"' in text


def test_the_vocabulary_is_the_run_s_or_the_architecture_s():
    told = run(model=ModelSettings(name="ViT-test", vocab_size=500))
    assert make_step(told, jax.devices()).config.text.vocab_size == 500
    assert make_step(run(), jax.devices()).config.text.vocab_size == 64


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": DataConfig(batch_size=60)}, "data.batch_size=60 does not divide over 8 devices"),
        ({"mesh": MeshConfig(fsdp=3)}, "mesh.fsdp=3 does not make the 8 devices"),
        ({"model": ModelSettings(name="ViT-testy")}, 'no architecture "ViT-testy"; nearest'),
        ({"data": DataConfig(batch_size=64, accumulation=3)}, "8 devices x 3 micro-batches"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, says):
    with pytest.raises(ValueError, match=says):
        make_step(run(**changes), jax.devices())


def test_what_only_training_refuses_is_said_and_does_not_stop_a_plan():
    cfg = run(steps=10)
    step = make_step(cfg, jax.devices())
    (said,) = refusals(cfg, step.mesh)
    assert "optimizer.warmup_steps=100 " in said
    assert refusals(run(), step.mesh) == ()
