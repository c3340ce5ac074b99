"""The schedule, the update rules, and which parameters are decayed, slowed down or clipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import OptimizerConfig
from clip_jax.losses import softmax_loss
from clip_jax.models.clip import create_model, init_variables
from clip_jax.sharding import path_name
from clip_jax.training.optimizer import (
    DIRECTIONS,
    OPTAX,
    decay_mask,
    follow_step,
    make_optimizer,
    make_schedule,
    scale_by_layer,
)

PLAIN = {"warmup_steps": 0, "schedule": "constant"}


def shapes_of(name: str, **changes) -> dict:
    model = create_model(name, **changes)
    return jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))["params"]


def named(tree) -> dict:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# ---------------------------------------------------------------------------- the schedule


def rates(steps: int = 100, **settings) -> np.ndarray:
    cfg = OptimizerConfig(**{"learning_rate": 2.0, "warmup_steps": 10} | settings)
    return np.asarray(jax.vmap(make_schedule(cfg, steps))(jnp.arange(steps)))


def test_warm_up_and_cosine_have_open_clips_figures():
    expected = [
        2.0 * (k + 1) / 10 if k < 10 else 2.0 * 0.5 * (1 + np.cos(np.pi * (k - 10) / 90))
        for k in range(100)
    ]
    np.testing.assert_allclose(rates(), expected, rtol=1e-5, atol=1e-6)


def test_the_other_schedules_go_their_ways():
    assert (rates(schedule="constant")[9:] == 2).all()
    linear = rates(schedule="linear", final_learning_rate=0.2)
    np.testing.assert_allclose(linear[10:], 2 - 1.8 * np.arange(90) / 90, rtol=1e-5)
    rsqrt = rates(schedule="rsqrt")
    np.testing.assert_allclose(rsqrt[39] / rsqrt[9], 0.5, rtol=1e-6)  # four times as far


@pytest.mark.parametrize("schedule", ["constant", "rsqrt"])
def test_a_cooldown_is_a_straight_line_to_the_final_rate_without_a_jump(schedule):
    found = rates(schedule=schedule, cooldown_steps=20, final_learning_rate=0.1)
    down = np.diff(found[80:])
    np.testing.assert_allclose(down, down[0], atol=1e-6)
    assert found[99] + down[0] == pytest.approx(0.1, abs=1e-5)
    assert abs(np.diff(found[9:])).max() < 0.2


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_ends_at_the_final_rate_leaves_a_cooldown_nothing_to_cool(schedule):
    cfg = OptimizerConfig(schedule=schedule, warmup_steps=10, cooldown_steps=20)
    with pytest.raises(ValueError, match=rf"cooldown_steps=20 .* as optimizer.schedule={schedule}"):
        make_schedule(cfg, 100)


def test_a_run_shorter_than_its_warm_up_is_refused():
    cfg = OptimizerConfig(schedule="constant", warmup_steps=80, cooldown_steps=30)
    with pytest.raises(ValueError, match=r"warmup_steps=80.*cooldown_steps=30.*steps=100"):
        make_schedule(cfg, 100)


def test_the_rate_of_a_number_is_computed_on_the_host_and_is_the_devices():
    for schedule in ("cosine", "linear", "rsqrt", "constant"):
        cooldown = 20 if schedule in ("rsqrt", "constant") else 0
        cfg = OptimizerConfig(schedule=schedule, warmup_steps=10, cooldown_steps=cooldown)
        rate = make_schedule(cfg, 100)
        on_host = [rate(step) for step in range(100)]
        assert not any(isinstance(value, jax.Array) for value in on_host)
        on_device = jax.vmap(rate)(jnp.arange(100))
        np.testing.assert_allclose(on_host, on_device, rtol=1e-5, atol=1e-9)


# ------------------------------------------------------------------------------- by their names


MATRIX = {"blocks": {"kernel": jnp.full((2, 4, 4), 3.0), "bias": jnp.full((2, 4), 3.0)}}
# They need more than gradients and a schedule: a loss's value, another optimizer, a fixed rate.
NEED_MORE = {
    *("dpsgd", "lbfgs", "momo", "momo_adam", "optimistic_adam", "rprop", "schedule_free", "sm3"),
    *("sophia", "schedule_free_adamw", "schedule_free_sgd"),
}


def first_update(cfg: OptimizerConfig, gradient: float = 0.5, steps: int = 1):
    optimizer = make_optimizer(cfg, 10)
    state = optimizer.init(MATRIX)
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), MATRIX)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, MATRIX)
    return updates


@pytest.mark.filterwarnings("ignore")  # optax's own, of what it is about to change
def test_every_optimizer_of_optax_that_needs_gradients_alone_is_made_by_its_name():
    refused = set()
    for name in OPTAX.keys() - DIRECTIONS.keys():
        try:
            optimizer = make_optimizer(OptimizerConfig(name=name, **PLAIN), 10)
        except ValueError:
            refused.add(name)
            continue
        updates = jax.eval_shape(lambda p, o=optimizer: o.update(p, o.init(p), p)[0], MATRIX)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, MATRIX), name
    assert {"sgd", "lamb", "lars", "adam", "adan", "prodigy"}.isdisjoint(refused)
    assert refused <= NEED_MORE


def test_an_optimizer_of_optax_is_optaxs_own_with_the_settings_that_it_takes():
    cfg = OptimizerConfig(name="lamb", learning_rate=0.1, b2=0.97, eps=1e-3, **PLAIN)
    own = optax.lamb(0.1, 0.9, 0.97, 1e-3, weight_decay=0.2, mask=decay_mask)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.5), MATRIX)
    expected, _ = own.update(grads, own.init(MATRIX), MATRIX)
    for same in (cfg, dataclasses.replace(cfg, name="optax:lamb")):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first_update(same), expected
        )


def test_options_reach_the_optimizer():
    cfg = OptimizerConfig(name="sgd", learning_rate=0.1, **PLAIN)
    plain = first_update(cfg, steps=2)["blocks"]["kernel"]
    heavy = dataclasses.replace(cfg, options=("momentum=0.9", "nesterov=true"))
    np.testing.assert_allclose(plain, -0.1 * 0.5)
    own = optax.sgd(0.1, momentum=0.9, nesterov=True)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.5), MATRIX)
    _, state = own.update(grads, own.init(MATRIX), MATRIX)
    expected, _ = own.update(grads, state, MATRIX)
    found = first_update(heavy, steps=2)["blocks"]["kernel"]
    np.testing.assert_allclose(found, expected["blocks"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamv"}, r"optimizer.name='adamv' .* the nearest is 'adam"),
        ({"name": "adafactor", "b2": 0.9}, r"optimizer.b2=0.9 has no effect.*name=adafactor"),
        ({"name": "adafactor", "eps": 1e-8}, r"optimizer.eps=1e-08 has no effect.*name=adafactor"),
        ({"name": "lion", "eps": 1e-8}, r"optimizer.eps=1e-08 has no effect.*name=lion"),
        ({"name": "sgd", "b1": 0.8}, r"optimizer.b1=0.8 has no effect.*name=sgd"),
        ({"name": "sgd", "weight_decay": 0.1}, r"optimizer.weight_decay=0.1 has no effect.*sgd"),
        ({"name": "lamb", "moment_dtype": "bfloat16"}, r"optimizer.moment_dtype=bfloat16 has no"),
        ({"name": "sgd", "options": ("momentun=0.9",)}, r"options has 'momentun=0.9'.*momentum"),
        ({"name": "sgd", "options": ("momentum",)}, r"options has 'momentum': write NAME=VALUE"),
        ({"name": "sgd", "options": ("momentum=a b",)}, r"which is no Python value"),
        ({"name": "adamw", "options": ("b1=0.9",)}, r"options has 'b1=0.9'.*is one of none"),
        ({"name": "lbfgs"}, r"optimizer.name=lbfgs cannot be used with gradients"),
        (
            {"name": "schedule_free_sgd"},
            r"name=schedule_free_sgd evaluates at an average of its own",
        ),
        ({"ema_warmup": False}, r"optimizer.ema_warmup=False has no effect.*ema_decay is None"),
    ],
)
def test_what_an_optimizer_does_not_use_or_lacks_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerConfig(**settings), 200)


@pytest.mark.parametrize("name", ["adamw", "muon", "lamb"])
def test_the_constants_of_adam_are_the_settings(name):
    def bias(**settings) -> np.ndarray:
        cfg = OptimizerConfig(name=name, weight_decay=0.0, learning_rate=1.0, **PLAIN, **settings)
        optimizer = make_optimizer(cfg, 10)
        params = {"blocks": {"bias": jnp.ones(3)}}
        state = optimizer.init(params)
        for gradient_3 in ([0.01, 0.02, -0.03], [0.09, -0.03, 0.06]):
            grads = {"blocks": {"bias": jnp.array(gradient_3)}}
            updates, state = optimizer.update(grads, state, params)
        return np.asarray(updates["blocks"]["bias"])

    usual = bias()
    for changed in ({"b1": 0.5}, {"b2": 0.9}, {"b2": 0.999}, {"eps": 1e-2}):
        assert not np.allclose(bias(**changed), usual, rtol=1e-3), changed


def test_adamw_is_the_textbooks():
    settings = {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "learning_rate": 0.1, "weight_decay": 0.0}
    optimizer = make_optimizer(OptimizerConfig(**settings, **PLAIN), 10)
    state, m, v = optimizer.init({"w": jnp.zeros(2)}), np.zeros(2), np.zeros(2)
    for count in (1, 2, 3):
        g = np.array([0.01, -0.2]) * count
        updates, state = optimizer.update({"w": jnp.asarray(g)}, state, {"w": jnp.zeros(2)})
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        expected = -0.1 * (m / (1 - 0.8**count)) / (np.sqrt(v / (1 - 0.95**count)) + 1e-3)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_a_schedule_follows_the_step_and_not_the_updates_that_were_made(name):
    cfg = OptimizerConfig(name=name, schedule="linear", warmup_steps=0, learning_rate=1.0)
    optimizer = make_optimizer(cfg, 10)
    state = optimizer.init(MATRIX)
    zeros = jax.tree.map(jnp.zeros_like, MATRIX)

    def size(state) -> float:
        return float(optimizer.update(zeros, state, MATRIX)[0]["blocks"]["kernel"].ravel()[0])

    first = size(state)
    assert size(follow_step(state, jnp.int32(9))) == pytest.approx(0.1 * first, rel=1e-5)
    assert jax.tree.structure(follow_step(state, jnp.int32(9))) == jax.tree.structure(state)


# --------------------------------------------------------------------- which parameters, how


@pytest.mark.parametrize("name", ["ViT-test", "RN-test", "ViT-B-16-SigLIP"])
def test_decayed_are_matrices_and_token_embeddings_alone(name):
    mask = named(decay_mask(shapes_of(name)))
    for parameter, decayed in mask.items():
        last = parameter.split("/")[-1]
        spared = last in ("scale", "bias", "logit_scale", "logit_bias", "class_embedding", "probe")
        assert decayed == (not spared and last != "position_embedding"), parameter
    with_positions = named(decay_mask(shapes_of(name), positions=True))
    changed = {one for one, decayed in with_positions.items() if decayed != mask[one]}
    assert changed == {one for one in mask if one.endswith("position_embedding")} != set()


@pytest.mark.parametrize("name", DIRECTIONS)
def test_decay_shrinks_by_the_rate_times_its_weight_and_spares_the_rest(name):
    cfg = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.2, **PLAIN)
    params = {"blocks": {"kernel": jnp.full((2, 4, 4), 3.0), "bias": jnp.full((2, 4), 3.0)}}
    optimizer = make_optimizer(cfg, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["kernel"], -0.1 * 0.2 * 3, rtol=1e-6)
    np.testing.assert_array_equal(updates["blocks"]["bias"], 0)


def test_a_layer_learns_slower_by_a_factor_than_the_one_above_it():
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes_of("ViT-test"))
    optimizer = scale_by_layer(0.5, create_model("ViT-test").config.towers)
    found = named(optimizer.update(params, optimizer.init(params))[0])
    for tower in ("image", "text"):
        assert (found[f"{tower}/projection/kernel"] == 1).all()
        assert (found[f"{tower}/post_norm/scale"] == 1).all()
        for part in ("attention/qkv/kernel", "mlp/down/bias", "mlp_norm/scale"):
            block = found[f"{tower}/transformer/blocks/{part}"]
            assert (block[1] == 0.5).all() and (block[0] == 0.25).all()
        assert (found[f"{tower}/position_embedding"] == 0.125).all()
    for below in ("patch_embedding/kernel", "class_embedding", "pre_norm/scale"):
        assert (found[f"image/{below}"] == 0.125).all(), below
    assert (found["text/token_embedding"] == 0.125).all()
    assert found["logit_scale"] == 1


def test_gradients_are_clipped_before_they_reach_the_moments():
    cfg = OptimizerConfig(clip_norm=1.0, weight_decay=0.0, **PLAIN)
    params = {"kernel": jnp.zeros(4), "bias": jnp.zeros(4)}
    optimizer = make_optimizer(cfg, 10)
    large = {"kernel": jnp.full(4, 30.0), "bias": jnp.full(4, 40.0)}
    _, state = optimizer.update(large, optimizer.init(params), params)
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moments["kernel"], 0.1 * 0.3, rtol=1e-6)
    np.testing.assert_allclose(moments["bias"], 0.1 * 0.4, rtol=1e-6)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_first_moment_may_be_kept_in_half_the_memory(name):
    params = {"blocks": {"kernel": jnp.zeros((2, 8, 8)), "bias": jnp.zeros((2, 8))}}

    def moments(dtype: str) -> list:
        cfg = OptimizerConfig(name=name, moment_dtype=dtype, **PLAIN)
        state = make_optimizer(cfg, 10).init(params)
        return [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.dtype(dtype)]

    full = [leaf for leaf in moments("float32") if leaf.size > 1]
    half = [leaf for leaf in moments("bfloat16") if leaf.size > 1]
    assert len(full) >= len(half) == 2  # one for each parameter


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_rule_trains_a_model(name, descend):
    value_and_gradient, params = descend
    cfg = OptimizerConfig(name=name, learning_rate=3e-3, weight_decay=0.01, **PLAIN)
    optimizer = make_optimizer(cfg, 12)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    losses = []
    for _ in range(12):
        loss, gradient = value_and_gradient(params)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    assert losses[-1] < 0.75 * losses[0]


@pytest.fixture(scope="module")
def descend(draw):
    """The loss of a batch and its gradient at some parameters, and the parameters to begin with."""
    model = create_model("ViT-test")
    rng = np.random.default_rng(0)
    images_BHWC = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
    tokens_BL = rng.integers(1, 60, (16, 8), np.int32)

    def loss(params):
        z_image_BE, z_text_BE, scale, *_ = model.apply({"params": params}, images_BHWC, tokens_BL)
        return softmax_loss(z_image_BE, z_text_BE, scale)

    params = draw(model)["params"]
    program = jax.jit(jax.value_and_grad(loss)).lower(params)
    return program.compile(compiler_options={"xla_backend_optimization_level": 0}), params
