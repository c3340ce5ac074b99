"""One optimizer step: what it takes, what it leaves out, and that the mesh does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import HealthConfig, LossConfig, OptimizerConfig
from clip_jax.losses.objective import make_objective
from clip_jax.models.clip import Outputs, create_model
from clip_jax.training.gradients import batch_gradients, join_batch, split_batch
from clip_jax.training.state import Health, new_state
from clip_jax.training.step import average_decay, check_health

LOSS_IS_NAN, GRADIENT_IS_NAN, GRADIENT_IS_HUGE = 61, 62, 63  # first tokens; see conftest.py
KEPT = ("params", "opt_state", "ema", "batch_stats", "ema_batch_stats")
LN_100 = np.log(np.float32(100))


@pytest.fixture(scope="module")
def mended(compiled, fragile):
    """A step that keeps an average and looks for spikes once it has taken three steps."""
    mesh = jax.make_mesh(
        (1, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    return mesh, compiled(
        mesh,
        fragile,
        optimizer=OptimizerConfig(
            learning_rate=1e-2, warmup_steps=2, ema_decay=0.75, ema_warmup=False
        ),
        health=HealthConfig(spike_factor=10.0, spike_warmup_steps=3),
    )


def kept(state):
    return jax.device_get({name: getattr(state, name) for name in KEPT})


def assert_same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("fault", [LOSS_IS_NAN, GRADIENT_IS_NAN])
def test_a_step_that_is_not_finite_changes_nothing_but_its_count(mended, batch, fault):
    mesh, run = mended
    state, _ = run.step(run.state(), batch(mesh, 0))
    before = kept(state)
    state, metrics = run.step(state, batch(mesh, 1, first=fault))
    assert np.isfinite(metrics["loss"]) == (fault == GRADIENT_IS_NAN)
    assert not np.isfinite(metrics["grad_norm"])
    assert_same_bits(kept(state), before)
    assert (int(state.step), int(state.health.skipped), int(state.health.counted)) == (2, 1, 1)
    state, metrics = run.step(state, batch(mesh, 2, first=fault))
    assert (metrics["skipped_steps"], metrics["skipped_in_row"]) == (2, 2)
    state, metrics = run.step(state, batch(mesh, 3))
    assert (metrics["skipped_steps"], metrics["skipped_in_row"]) == (2, 0)
    with pytest.raises(AssertionError):
        assert_same_bits(kept(state), before)


def test_a_spike_is_left_out_once_the_average_is_known(mended, batch):
    mesh, run = mended
    state, metrics = run.step(run.state(), batch(mesh, 0, first=GRADIENT_IS_HUGE))
    assert metrics["skipped_steps"] == 0
    state = run.state()
    for seed in range(3):
        state, metrics = run.step(state, batch(mesh, seed))
    before, average = kept(state), float(state.health.grad_norm_mean)
    state, metrics = run.step(state, batch(mesh, 4, first=GRADIENT_IS_HUGE))
    assert metrics["grad_norm"] > 10 * average
    assert metrics["skipped_steps"] == 1
    assert_same_bits(kept(state), before)
    assert state.health.grad_norm_mean == np.float32(average)


def test_the_average_of_the_variables_follows_them(mended, batch):
    mesh, run = mended
    state, average = run.state(), jax.device_get(run.first.variables)
    for seed in range(3):
        state, _ = run.step(state, batch(mesh, seed))
        new = jax.device_get(state.variables)
        average = jax.tree.map(lambda old, now: 0.75 * old + 0.25 * now, average, new)
    found = jax.device_get(state.ema_variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, average)
    for name in ("params", "batch_stats"):
        with pytest.raises(AssertionError):
            assert_same_bits(found[name], jax.device_get(state.variables[name]))


@pytest.mark.parametrize("start,end", [(9.0, LN_100), (-3.0, 0.0)])
def test_the_temperature_stays_between_1_and_100(mended, batch, start, end):
    mesh, run = mended
    params = run.first.params | {"logit_scale": np.float32(start)}
    state, _ = run.step(run.state(params=params), batch(mesh))
    assert float(state.params["logit_scale"]) == pytest.approx(end, abs=1e-6)
    assert jnp.exp(state.params["logit_scale"]) <= 100 * (1 + 1e-6)


def test_the_state_that_a_step_is_given_is_used_up(mended, batch):
    mesh, run = mended
    old = run.state()
    run.step(old, batch(mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))


def test_batch_statistics_and_metrics_come_from_the_whole_batch_on_every_mesh(
    mesh, mended, compiled, fragile, batch
):
    (_, alone), on = mended, mesh(4, 2)
    split = compiled(on, fragile, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2))
    expected, figures = alone.step(alone.state(), batch(mended[0]))
    actual, split_figures = split.step(split.state(), batch(on))
    mean_C = np.asarray(batch(on)["image"]).mean(axis=(0, 1, 2))
    start_C = alone.first.batch_stats["mean"]
    for state in (expected, actual):
        np.testing.assert_allclose(
            state.batch_stats["mean"], 0.9 * start_C + 0.1 * mean_C, rtol=1e-5
        )
    for name in figures:
        np.testing.assert_allclose(
            figures[name], split_figures[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_running_statistics_meet_every_micro_batch_in_turn(mesh, fragile, draw, batch):
    on, key, objective = mesh(1), jax.random.key(0), make_objective(LossConfig())
    common = {"model": fragile, "optimizer": optax.identity(), "variables": draw(fragile)}
    state, whole = new_state(key, **common), batch(on)

    @jax.jit
    def statistics(state):
        how = {"model": fragile, "objective": objective, "mesh": on, "parts": 2}
        return batch_gradients(state, whole, key, **how).batch_stats["mean"]

    expected_C = np.asarray(state.batch_stats["mean"])
    for images_BHWC in split_batch(whole["image"], 2, on):
        expected_C = 0.9 * expected_C + 0.1 * np.asarray(images_BHWC).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(statistics(state), expected_C, rtol=1e-5)


MESHES = ((1, 1), (8, 1), (4, 2), (1, 8))


@pytest.mark.parametrize(
    ("name", "meshes"), [("two matrices", MESHES), ("transformers", (MESHES[0], MESHES[2]))]
)
def test_every_mesh_trains_along_the_same_curve(name, meshes, mesh, compiled, fragile, batch):
    model = fragile if name == "two matrices" else create_model("ViT-test")
    curves = []
    for on in (mesh(*shape) for shape in meshes):
        run = compiled(on, model)
        state, losses = run.state(), []
        for step in range(20):
            state, metrics = run.step(state, batch(on, step % 4))
            losses.append(float(metrics["loss"]))
        curves.append(losses)
    assert curves[0][-1] < 0.8 * curves[0][0]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)], ids=str)
def test_moments_that_are_split_over_the_data_axis_change_nothing_but_rounding(
    shape, mesh, compiled, fragile, batch
):
    on, found = mesh(*shape), {}
    for zero in (False, True):
        optimizer = OptimizerConfig(
            learning_rate=1e-2, warmup_steps=2, ema_decay=0.75, shard_over_data=zero
        )
        run = compiled(on, fragile, optimizer=optimizer)
        state = run.state()
        for seed in range(3):
            state, _ = run.step(state, batch(on, seed, first=LOSS_IS_NAN if seed == 1 else None))
        found[zero] = state
    plain, split = found[False], found[True]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        kept(split),
        kept(plain),
    )
    kernel = lambda tree: tree["image"]["projection"]["kernel"]  # noqa: E731
    for state, parts in ((plain, shape[1]), (split, 8)):
        moment = kernel(optax.tree.get(state.opt_state, "mu"))
        assert moment.size == parts * moment.addressable_shards[0].data.size
        param = kernel(state.params)
        assert param.size == shape[1] * param.addressable_shards[0].data.size


def test_micro_batches_meet_their_own_random_patches_again(mesh, batch, draw):
    """The gradient is that of the plain loss whose parts drop the patches that each part drew."""
    on, parts, key = mesh(1), 2, jax.random.key(5)
    model = create_model("ViT-test", patch_dropout=0.5)
    variables, whole = draw(model), batch(on)
    state = new_state(key, model=model, optimizer=optax.identity(), variables=variables)
    objective = make_objective(LossConfig())

    def in_parts(state):
        found = batch_gradients(
            state, whole, key, model=model, objective=objective, mesh=on, parts=parts
        )
        return found.loss, found.params

    def plain(params):
        split = jax.tree.map(lambda x: split_batch(x, parts, on), whole)
        embedded = [
            model.apply(
                {"params": params},
                *(split["image"][part], split["tokens"][part]),
                train=True,
                rngs={"dropout": part_key},
            )
            for part, part_key in enumerate(jax.random.split(key, parts))
        ]
        image_BE, text_BE = (
            join_batch(jnp.stack(z), on) for z in list(zip(*embedded, strict=True))[:2]
        )
        outputs = Outputs(image_BE, text_BE, embedded[0].logit_scale, None)
        return objective(outputs, whole, mesh=on)[0]

    program = jax.jit(lambda state: (in_parts(state), jax.value_and_grad(plain)(state.params)))
    found, expected = program(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found, expected
    )


def test_dropped_patches_are_drawn_anew_by_each_step_and_seed_and_by_nothing_else(
    mesh, compiled, batch
):
    """A learning rate of nearly 0 leaves the parameters: what differs is what was dropped."""
    on, model = mesh(1), create_model("ViT-test", patch_dropout=0.5)
    optimizer = OptimizerConfig(learning_rate=1e-30, weight_decay=0.0, warmup_steps=0)

    def losses(seed: int, starts: tuple[int, ...]) -> list[float]:
        run = compiled(on, model, optimizer=optimizer, seed=seed)
        states = (run.state(step=np.int32(start)) for start in starts)
        return [float(run.step(state, batch(on))[1]["loss"]) for state in states]

    first, second, again = losses(0, (0, 1, 0))
    assert first == again and first != second
    (other,) = losses(1, (0,))
    assert other not in (first, second)


def test_a_ring_of_one_device_is_the_tiled_loss(mesh):
    rng = np.random.default_rng(0)
    outputs = Outputs(*rng.normal(size=(2, 12, 8)).astype(np.float32) / 3, 9.0, None)
    losses = [
        jax.jit(lambda z, cfg=cfg: make_objective(cfg)(z, {}, mesh=mesh(1))[0])(outputs)
        for cfg in (LossConfig(distributed=name, tile=4) for name in ("ring", "gather"))
    ]
    assert losses[0] == losses[1]


def health(**values) -> Health:
    start = {"skipped": 0, "skipped_in_row": 0, "grad_norm_mean": 0.0, "counted": 0}
    return Health(**{name: jnp.asarray(value) for name, value in (start | values).items()})


def judge(before: Health, cfg=None, **figures):
    sound = {"loss": 1.0, "grad_norm": jnp.float32(1), "update_norm": 1.0}
    return check_health(before, cfg or HealthConfig(), **(sound | figures))


@pytest.mark.parametrize("name", ["loss", "grad_norm", "update_norm"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_loss_a_gradient_or_an_update_that_is_not_finite_is_not_sound(name, value):
    sound, after = judge(health(), **{name: value})
    assert not sound and after.skipped == after.skipped_in_row == 1
    assert judge(health())[0]


def test_a_run_may_choose_to_take_steps_that_are_not_finite():
    cfg = HealthConfig(skip_nonfinite=False)
    sound, after = judge(health(counted=5, grad_norm_mean=2.0), cfg, grad_norm=jnp.inf)
    assert sound and after.skipped == 0
    assert after.grad_norm_mean == 2  # yet the average stays a number


def test_the_average_gradient_norm_is_plain_at_first_and_then_forgets():
    state = health()
    for norm in (1.0, 2.0, 6.0):
        _, state = judge(state, grad_norm=jnp.float32(norm))
    assert state.grad_norm_mean == pytest.approx(3.0)
    _, state = judge(health(counted=10_000, grad_norm_mean=3.0), grad_norm=jnp.float32(4.0))
    assert state.grad_norm_mean == pytest.approx(3.01)


def test_the_average_of_a_short_run_is_of_what_it_learnt():
    cfg, random_start = OptimizerConfig(ema_decay=0.9999), 1.0
    for step in range(100):
        random_start *= float(average_decay(cfg, jnp.int32(step)))
    assert random_start < 1e-6
    assert average_decay(cfg, jnp.int32(10**7)) == pytest.approx(0.9999)
    plain = OptimizerConfig(ema_decay=0.9999, ema_warmup=False)
    assert average_decay(plain, jnp.int32(0)) == 0.9999


def test_the_learning_rate_is_that_of_the_step_however_many_were_skipped(mended, batch):
    """A warm-up of two steps: the second one's rate is twice the first one's, whoever saw the first."""
    mesh, run = mended
    _, first = run.step(run.state(), batch(mesh))
    _, second = run.step(run.state(step=np.ones_like(run.first.step)), batch(mesh))
    assert float(second["update_norm"]) == pytest.approx(2 * float(first["update_norm"]), rel=1e-4)


def test_an_update_that_is_not_finite_is_skipped_though_the_gradients_are(compiled, mesh, batch):
    """A token that never occurs has no gradient, and with an eps of 0 in float32 Adam divides 0 by 0."""
    on, model = mesh(1), create_model("ViT-test")
    run = compiled(on, model, optimizer=OptimizerConfig(eps=1e-60, warmup_steps=2))
    state, metrics = run.step(run.state(), batch(on))
    assert np.isfinite(metrics["grad_norm"]) and not np.isfinite(metrics["update_norm"])
    assert metrics["skipped_in_row"] == 1
    assert_same_bits(jax.device_get(state.params), run.first.params)
