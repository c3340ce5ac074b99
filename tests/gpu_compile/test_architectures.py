"""The train step of every registered architecture compiles for an H100, with cuDNN's attention."""

import pytest

from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import MOST_UNROLLED, deepest

ONE_POSITION = ("class", "argmax", "eos", "last")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_step_compiles_in_bfloat16_with_default_settings(name, compile_for):
    compiled = compile_for("h100:1", batch_size=8, name=name)
    runs = compiled.program.kernels
    towers = ARCHITECTURES[name].towers.values()
    blocks = sum(tower.depth for tower in towers)
    if deepest(ARCHITECTURES[name]) <= MOST_UNROLLED:
        # The last block of a tower that reads one position attends from there alone.
        blocks -= sum(getattr(tower, "pool", None) in ONE_POSITION for tower in towers)
    assert runs["cuDNN attention, forward"] == runs["cuDNN attention, backward"] == blocks
    assert compiled.program.flops > 0
    assert compiled.peak_bytes > compiled.argument_bytes > 0
