"""A mesh whose "fsdp" divides no width of the model: matrices are split over several axes."""

import dataclasses

import numpy as np

from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP

BY_HALVES = {"width": 36, "mlp_width": 108, "heads": 2}  # 8 divides none of 36, 108 and 3 * 36


def test_a_size_that_divides_no_width_trains_as_one_device_does(compiled, batch, mesh):
    config = model_config("ViT-test")
    towers = {side: getattr(config, side).with_known(**BY_HALVES) for side in ("vision", "text")}
    model = CLIP(dataclasses.replace(config, **towers))
    losses = {}
    for on in (mesh(1), mesh(1, 8)):
        made = compiled(on, model)
        state, losses[on.size] = made.state(), []
        for seed in range(3):
            state, metrics = made.step(state, batch(on, seed))
            losses[on.size].append(float(metrics["loss"]))
        qkv = state.params["image"]["transformer"]["blocks"]["attention"]["qkv"]["kernel"]
        held = qkv.sharding.shard_shape(qkv.shape)
        assert held == ((2, 36, 108) if on.size == 1 else (2, 9, 54))
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-4)
