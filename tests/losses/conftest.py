"""Random embeddings, and the dense loss of them in float64 with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.losses import (
    replicated_sigmoid_loss,
    replicated_softmax_loss,
    sigmoid_loss,
    softmax_loss,
)

AXES = ("data", "fsdp")
KINDS = {
    "softmax": (softmax_loss, replicated_softmax_loss, (14.3,)),
    "sigmoid": (sigmoid_loss, replicated_sigmoid_loss, (14.3, -4.5)),
}


@pytest.fixture
def pairs():
    """`pairs(48)`: unit embeddings of 48 images, and of texts that are somewhat like them."""

    def make(batch: int, features: int = 24):
        rng = np.random.default_rng(0)
        image_BE = rng.normal(size=(batch, features))
        text_BE = image_BE + rng.normal(size=(batch, features))
        unit = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image_BE, text_BE))
        return tuple(z.astype(np.float32) for z in unit)

    return make


@pytest.fixture
def value_and_gradients():
    """The loss of a kind and its gradients by all arguments, on the mesh given or on one device."""

    def compute(kind, arguments, mesh=None, *, inside=False, **options):
        loss_fn, argnums = KINDS[kind][0], tuple(range(len(arguments)))
        if mesh is None:
            fn = jax.value_and_grad(lambda *a: loss_fn(*a, **options), argnums)
            return jax.jit(fn)(*arguments)

        def loss(*a):
            return loss_fn(*a, axis_name=AXES, **options)

        specs = (P(AXES), P(AXES), *[P()] * (len(arguments) - 2))
        if inside:
            fn = jax.value_and_grad(loss, argnums)
            fn = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=(P(), specs))
        else:
            fn = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P())
            fn = jax.value_and_grad(fn, argnums)
        return jax.jit(fn)(*arguments)

    return compute


@pytest.fixture
def reference():
    """The same of the dense loss in float64."""

    def compute(kind, arguments):
        with jax.enable_x64(True):
            arguments = tuple(jnp.asarray(a, jnp.float64) for a in arguments)
            fn = jax.value_and_grad(KINDS[kind][1], tuple(range(len(arguments))))
            return jax.tree.map(np.asarray, fn(*arguments))

    return compute


@pytest.fixture
def assert_close():
    """Each array is as near to the other as `tolerance` of that one's length."""

    def check(actual, expected, tolerance: float = 1e-5, name: str = ""):
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            distance = np.linalg.norm(np.asarray(a, np.float64) - b)
            assert distance <= tolerance * np.linalg.norm(b), name

    return check
