"""The train step of every registered architecture compiles for an H100, with cuDNN's attention."""

import pytest

from clip_jax.models.architectures import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_step_compiles_in_bfloat16_with_default_settings(name, compile_for):
    compiled = compile_for("h100:1", batch_size=8, name=name)
    runs = compiled.program.kernels
    depth = sum(tower.depth for tower in ARCHITECTURES[name].towers.values())
    assert runs["cuDNN attention, forward"] == runs["cuDNN attention, backward"] == depth
    assert compiled.program.flops > 0
    assert compiled.peak_bytes > compiled.argument_bytes > 0
