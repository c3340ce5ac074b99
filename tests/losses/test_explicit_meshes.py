"""Models and losses work on meshes of JAX's default axis types, Explicit, as on any other."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import clip_jax

MODEL = clip_jax.create_model("ViT-test")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
TOKENS = RNG.integers(0, 64, (4, 8)).astype(np.int32)


@pytest.fixture(scope="module")
def split():
    """Splits the first axis over two devices."""
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])

    def place(x, axes=("data",)):
        return jax.device_put(x, NamedSharding(mesh, P(*axes)))

    return place


@pytest.fixture(scope="module")
def pairs():
    z = RNG.normal(size=(2, 4, 16)).astype(np.float32)
    return tuple(z / np.linalg.norm(z, axis=-1, keepdims=True))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_similarity(wrap, split, pairs):
    expected = clip_jax.similarity(*pairs)
    image, text = pairs
    for arguments in ((split(image), split(text)), (split(image), text), (image, split(text))):
        np.testing.assert_allclose(
            wrap(clip_jax.similarity)(*arguments), expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("tile", [None, 2])
def test_losses_and_their_gradients(tile, split, pairs):
    for loss, scalars in ((clip_jax.softmax_loss, (10.0,)), (clip_jax.sigmoid_loss, (10.0, -5.0))):
        fn = jax.jit(
            jax.value_and_grad(lambda a, b, f=loss, s=scalars: f(a, b, *s, tile=tile), (0, 1))
        )
        expected = fn(*pairs)
        actual = fn(*map(split, pairs))
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_embeddings(split):
    variables = jax.jit(MODEL.init)(jax.random.key(0), PIXELS, TOKENS)
    encode = jax.jit(MODEL.apply, static_argnames="method")
    expected = encode(variables, PIXELS, TOKENS)
    placed = jax.tree.map(lambda x: split(x, ()), variables)
    outputs = encode(placed, split(PIXELS), split(TOKENS))
    np.testing.assert_allclose(outputs.image, expected.image, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs.text, expected.text, rtol=1e-4, atol=1e-6)
    assert outputs.image.sharding.spec[0] == "data"
    alone = encode(variables, split(PIXELS), method="encode_image")
    np.testing.assert_allclose(alone, expected.image, rtol=1e-4, atol=1e-6)


def test_forward_mode_works_where_the_docstring_says_so(pairs):
    image, text = pairs
    tangent = RNG.normal(size=image.shape).astype(np.float32)

    def loss(z, distributed):
        return clip_jax.softmax_loss(z, text, 10.0, distributed=distributed)

    _, forward = jax.jvp(lambda z: loss(z, "replicated"), (image,), (tangent,))
    backward = (jax.grad(loss)(image, "gather") * tangent).sum()
    np.testing.assert_allclose(forward, backward, rtol=1e-4)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda z: loss(z, "gather"), (image,), (tangent,))


@pytest.mark.parametrize(("loss", "scalars"), [("softmax", (5.0,)), ("sigmoid", (5.0, -1.0))])
def test_a_hessian_is_that_of_the_replicated_form(loss, scalars, pairs):
    image, text = (z_BE[:3, :4] for z_BE in pairs)

    def hessian(distributed, tile=None):
        settings = {"distributed": distributed, "tile": tile}
        function = getattr(clip_jax, f"{loss}_loss")
        return jax.jit(jax.hessian(lambda z_BE: function(z_BE, text, *scalars, **settings)))(image)

    expected = hessian("replicated")
    np.testing.assert_allclose(hessian("gather", tile=2), expected, rtol=1e-3, atol=1e-4)
