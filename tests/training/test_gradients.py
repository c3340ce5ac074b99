"""Whatever the mesh, the way devices meet, the tiles and the micro-batches: the gradient of the whole batch."""

import copy
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from clip_jax import sharding
from clip_jax.config import LossConfig
from clip_jax.losses import Loss, replicated_sigmoid_loss, replicated_softmax_loss
from clip_jax.losses.objective import make_objective
from clip_jax.models.clip import CLIP, Outputs, create_model, unit_length
from clip_jax.training.gradients import batch_gradients, per_sample
from clip_jax.training.state import abstract_state, new_state, sharded_new_state

B = 32
MESHES = [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8)]
MICRO_BATCHES = [1, 2, 4]
LOSSES = [
    LossConfig(kind=kind, distributed=distributed, tile=tile)
    for kind in ("softmax", "sigmoid")
    for distributed, tile in (
        ("replicated", None),
        *itertools.product(("gather", "ring"), (None, 2)),
    )
]
CONFIG = dataclasses.replace(create_model("ViT-test").config, init_logit_bias=-3.0)


class Projection(nn.Module):
    """A tower of one matrix."""

    @nn.compact
    def __call__(self, x_BD):
        return unit_length(nn.Dense(16, use_bias=False, name="projection")(x_BD))


class Linear(nn.Module):
    """The least that is a CLIP model: it compiles quickly enough for every combination."""

    config, heads = CONFIG, ()

    @nn.compact
    def __call__(self, images_BHWC, tokens_BL, *, train=False, frozen=()):
        del train, frozen
        words_BV = jax.nn.one_hot(tokens_BL, 64).sum(axis=1)
        scale = self.param("logit_scale", nn.initializers.constant(2.7), ())
        bias = self.param("logit_bias", nn.initializers.constant(-3.0), ())
        return Outputs(
            image=Projection(name="image")(images_BHWC.reshape(len(images_BHWC), -1) / 255 - 0.5),
            text=Projection(name="text")(words_BV),
            logit_scale=jnp.exp(scale),
            logit_bias=bias,
        )


def make_batch() -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (B, 16, 16, 3), np.uint8),
        "tokens": rng.integers(1, 64, (B, 8), np.int32),
    }


def sharded_gradients(model, mesh, losses, parts, *, batch=None):
    """(loss, gradients) of each loss, all computed on the mesh in one program."""
    parts_of_state = {"model": model, "optimizer": optax.identity()}
    state = sharded_new_state(abstract_state(mesh, **parts_of_state), 0, **parts_of_state)
    batch = jax.device_put(batch or make_batch(), sharding.batch_sharding(mesh))
    of_loss = functools.partial(batch_gradients, model=model, mesh=mesh, parts=parts)

    def all_losses(state, batch, key):
        found = [of_loss(state, batch, key, objective=make_objective(cfg)) for cfg in losses]
        return [(gradients.loss, gradients.params) for gradients in found]

    program = jax.jit(all_losses)
    return jax.device_get(program(state, batch, jax.random.key(0)))


@functools.cache
def exact_gradients(model, kind):
    """The same on one device from the definition of the loss, in float64."""
    state = new_state(jax.random.key(0), model=model, optimizer=optax.identity())
    batch, params = make_batch(), jax.device_get(state.params)
    with jax.enable_x64(True):
        if isinstance(model, CLIP):
            config = copy.copy(model.config)
            object.__setattr__(config, "dtype", "float64")  # no setting of a run
            model = CLIP(config)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)

        def loss_of(params):
            image_BE, text_BE, *scale_and_bias, _ = model.apply({"params": params}, *batch.values())
            if kind == "softmax":
                return replicated_softmax_loss(image_BE, text_BE, scale_and_bias[0])
            return replicated_sigmoid_loss(image_BE, text_BE, *scale_and_bias)

        return jax.device_get(jax.jit(jax.value_and_grad(loss_of))(params))


def assert_exact(found, model, cfg):
    """Each parameter's gradient is off by at most 1e-5 of its length."""
    (loss, grads), (exact_loss, exact) = found, exact_gradients(model, cfg.kind)
    assert exact_loss.dtype == np.float64 and loss.dtype == np.float32
    assert loss == pytest.approx(exact_loss, rel=1e-5)

    def compare(path, grad, right):
        # Softmax gives a bias no gradient, and the bias of keys has none under a softmax.
        length = max(np.linalg.norm(right), 1e-2 if "bias" in str(path) else 0)
        error = np.linalg.norm(grad - right) / length
        assert error < 1e-5, f"{cfg} {sharding.path_name(path)}: {error:.1e}"

    jax.tree_util.tree_map_with_path(compare, grads, exact)


@pytest.mark.parametrize("parts", MICRO_BATCHES)
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_every_loss_on_every_mesh_has_the_gradient_of_the_dense_float64_one(mesh, shape, parts):
    """Every two of mesh, micro-batches and loss meet, in a third of all combinations."""
    model, first = Linear(), (MESHES.index(shape) + MICRO_BATCHES.index(parts)) % 3
    losses = LOSSES[first::3]
    found = sharded_gradients(model, mesh(*shape), losses, parts)
    for cfg, gradients in zip(losses, found, strict=True):
        assert_exact(gradients, model, cfg)


@pytest.mark.parametrize(
    ("shape", "parts", "cfg"),
    [
        ((8, 1), 2, LossConfig(kind="sigmoid", distributed="gather")),
        ((4, 2), 4, LossConfig(kind="softmax", distributed="ring", tile=2)),
        ((1, 8), 2, LossConfig(kind="softmax", distributed="gather", tile=2)),
    ],
    ids=str,
)
def test_transformers_on_a_mesh_have_the_gradient_of_the_dense_float64_ones(
    mesh, shape, parts, cfg
):
    """The towers' own gradients. How meshes, losses and micro-batches meet is tested above."""
    on = mesh(*shape)
    model = CLIP(CONFIG, constrain=sharding.constrain_batch(on))
    (found,) = sharded_gradients(model, on, [cfg], parts)
    assert_exact(found, CLIP(CONFIG), cfg)


# ------------------------------------------------------------- terms that read more than embeddings


def _captioning(outputs, batch):
    """The cross-entropy of each token, from logits that the model gives for every sample."""
    log_BLV = jax.nn.log_softmax(outputs.extra["token_logits"])
    return -jnp.take_along_axis(log_BLV, batch["tokens"][..., None], axis=2).mean()


def _spread(outputs, batch):
    """Every pair of samples counts, so that no micro-batch knows its share alone."""
    hidden_BH = outputs.extra["hidden"]
    return jax.nn.logsumexp(hidden_BH @ hidden_BH.T)


CAPTIONING = Loss(
    name="captioning", function=_captioning, extra=("token_logits",), batch=("tokens",)
)
SPREAD = Loss(name="spread", function=_spread, extra=("hidden",))


class Captioner(nn.Module):
    """`Linear` that also gives logits of tokens, and two arrays more, of which one is not read."""

    config, heads = CONFIG, ()

    @nn.compact
    def __call__(self, images_BHWC, tokens_BL, *, train=False, frozen=()):
        outputs = Linear(name="clip")(images_BHWC, tokens_BL)
        hidden_BH = nn.Dense(4, name="hidden")(outputs.image)
        logits_BX = nn.Dense(8 * 64, name="decoder")(hidden_BH)
        scale = self.param("logit_scale", nn.initializers.constant(2.7), ())
        return outputs._replace(
            logit_scale=jnp.exp(scale),
            logit_bias=None,
            extra={
                "token_logits": logits_BX.reshape(-1, 8, 64),
                "hidden": hidden_BH,
                "unread": tokens_BL,
            },
        )


@pytest.mark.parametrize(("shape", "counts"), [((1, 1), (1, 4)), ((4, 2), (1, 2))], ids=str)
def test_terms_of_per_sample_arrays_have_one_gradient_however_many_micro_batches(
    mesh, shape, counts
):
    model, on = Captioner(), mesh(*shape)
    terms = (f"{__name__}:CAPTIONING=2", f"{__name__}:SPREAD=0.3")
    cfg = LossConfig(terms=terms)
    whole, *split = (sharded_gradients(model, on, [cfg], parts)[0] for parts in counts)
    state = new_state(jax.random.key(0), model=model, optimizer=optax.identity())

    def plain(params):
        outputs = model.apply({"params": params}, *make_batch().values())
        return (
            replicated_softmax_loss(*outputs[:3])
            + 2 * _captioning(outputs, make_batch())
            + 0.3 * _spread(outputs, make_batch())
        )

    expected = jax.device_get(jax.value_and_grad(plain)(state.params))
    for found in (whole, *split):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
        )


def test_extra_arrays_without_a_gradient_are_refused_under_accumulation():
    outputs = Outputs(jnp.ones(2), jnp.ones(2), 1.0, None, {"ids": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match=r"Outputs.extra\['ids'\] has type int32"):
        per_sample(outputs)
