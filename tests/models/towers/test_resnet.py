"""Tests of the modified ResNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.models.towers.resnet import AttentionPool2d, Bottleneck, ResNet, ResNetConfig

CONFIG = ResNetConfig(image_size=64, width=8, depths=(1, 1, 1, 1), heads=4)


@pytest.fixture(scope="module")
def tower():
    return ResNet(CONFIG, embed_dim=12, dtype=jnp.float32)


@pytest.fixture(scope="module")
def images_BHWC():
    return jax.random.normal(jax.random.key(1), (8, 64, 64, 3))


@pytest.fixture(scope="module")
def variables(tower, images_BHWC):
    # Drawn by NumPy: compiling an initialiser for each shape would take most of the time.
    shapes = jax.eval_shape(tower.init, jax.random.key(0), images_BHWC)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(1 + 0.1 * rng.random(leaf.shape), jnp.float32)
        fan_in = max(1, np.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.normal(size=leaf.shape) * fan_in**-0.5, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def apply(tower, variables, images_BHWC, **kwargs):
    """The embedding, with what changed where the call says what may."""

    def embed(variables, images_BHWC):
        found = tower.apply(variables, images_BHWC, **kwargs)
        return (found[0][0], found[1]) if "mutable" in kwargs else found[0]

    return jax.jit(embed)(variables, images_BHWC)


def test_strides_leave_a_thirty_second_of_the_image(tower, variables, images_BHWC):
    out_BE = apply(tower, variables, images_BHWC)
    assert out_BE.shape == (8, 12)
    assert variables["params"]["pool"]["position_embedding"].shape == (2 * 2 + 1, 256)


def test_in_evaluation_an_image_does_not_see_the_others(tower, variables, images_BHWC):
    whole_BE = apply(tower, variables, images_BHWC)
    alone_BE = apply(tower, variables, images_BHWC[:1])
    np.testing.assert_allclose(whole_BE[:1], alone_BE, atol=1e-5)


def test_in_training_the_statistics_are_of_the_batch(tower, variables, images_BHWC):
    kwargs = {"train": True, "mutable": ["batch_stats"]}
    out_BE, new = apply(tower, variables, images_BHWC, **kwargs)
    shifted_BE, _ = apply(tower, variables, 3 * images_BHWC, **kwargs)
    # The first convolution is linear and its norm takes the scale out again.
    np.testing.assert_allclose(out_BE, shifted_BE, atol=1e-3)
    old_mean = variables["batch_stats"]["stem_0"]["norm"]["mean"]
    new_mean = new["batch_stats"]["stem_0"]["norm"]["mean"]
    conv = jax.lax.conv_general_dilated(
        images_BHWC,
        variables["params"]["stem_0"]["conv"]["kernel"],
        (2, 2),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected = CONFIG.batch_norm_momentum * old_mean + 0.1 * conv.mean((0, 1, 2))
    np.testing.assert_allclose(new_mean, expected, atol=1e-5)


def test_batch_statistics_are_of_the_global_batch_over_devices(tower, variables, images_BHWC):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size > 1, "tests/conftest.py makes several devices"
    sharded_BHWC = jax.device_put(images_BHWC, NamedSharding(mesh, P("data")))
    kwargs = {"train": True, "mutable": ["batch_stats"]}
    expected = apply(tower, variables, images_BHWC, **kwargs)
    actual = apply(tower, variables, sharded_BHWC, **kwargs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, expected)


def test_every_parameter_gets_a_gradient(tower, variables, images_BHWC):
    def loss(params):
        (out_BE, _), _ = tower.apply(
            variables | {"params": params}, images_BHWC, train=True, mutable=["batch_stats"]
        )
        return jnp.square(out_BE[:, 0] - 1).mean()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        # A key's bias shifts all of a query's logits alike, which the softmax does not see.
        assert jnp.isfinite(gradient).all(), name
        if "['key']['bias']" not in name:
            assert jnp.abs(gradient).max() > 0, name


@pytest.mark.parametrize("train", [False, True])
def test_a_new_block_passes_its_input_on(train):
    block = Bottleneck(2, momentum=0.9, dtype=jnp.float32)
    x_BHWC = jax.random.normal(jax.random.key(0), (3, 4, 4, 8))
    variables = block.init(jax.random.key(1), x_BHWC, False)
    out_BHWC, _ = block.apply(variables, x_BHWC, train, mutable=["batch_stats"])
    np.testing.assert_array_equal(out_BHWC, jax.nn.relu(x_BHWC))


def test_rematerialisation_computes_more_and_changes_no_number(variables, images_BHWC):
    def loss(params, remat):
        tower = ResNet(CONFIG, embed_dim=12, dtype=jnp.float32, remat=remat)
        (out_BE, _), new = tower.apply(
            variables | {"params": params}, images_BHWC, train=True, mutable=["batch_stats"]
        )
        return jnp.square(out_BE[:, 0] - 1).mean(), new

    grad = jax.grad(loss, has_aux=True)
    texts = {
        remat: str(jax.make_jaxpr(grad, static_argnums=1)(variables["params"], remat))
        for remat in ("none", "dots", "full")
    }
    convolutions = {remat: text.count("conv_general_dilated[") for remat, text in texts.items()}
    assert convolutions["none"] == convolutions["dots"] < convolutions["full"]
    assert texts["none"].count("rsqrt") < texts["dots"].count("rsqrt")  # of norms
    run = jax.jit(grad, static_argnums=1)
    expected = run(variables["params"], "none")
    jax.tree.map(
        # XLA rounds the two programs otherwise: the largest number says how much.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1, abs(b).max())),
        run(variables["params"], "full"),
        expected,
    )


def test_attention_pooling_ignores_the_order_of_positions_without_their_embedding():
    pool = AttentionPool2d(heads=2, embed_dim=6, dtype=jnp.float32)
    x_BHWC = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    variables = pool.init(jax.random.key(1), x_BHWC)
    params = variables["params"] | {"position_embedding": jnp.zeros((10, 8))}
    flipped_BE = pool.apply({"params": params}, x_BHWC[:, ::-1, ::-1])
    np.testing.assert_allclose(flipped_BE, pool.apply({"params": params}, x_BHWC), atol=1e-6)
    positioned_BE = pool.apply(variables, x_BHWC[:, ::-1, ::-1])
    assert not np.allclose(positioned_BE, pool.apply(variables, x_BHWC), atol=1e-6)
