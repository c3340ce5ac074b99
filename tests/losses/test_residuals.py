"""Three bytes a number lose no more than a product summed in float32 does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses.residuals import PackedResiduals, max_norm


@pytest.mark.parametrize("scale", [1e-20, 1.0, 100.0, 1e6])
def test_the_error_is_that_of_a_float32_as_large_as_the_bound(scale):
    x_RB = np.random.default_rng(0).uniform(-scale, scale, (64, 33)).astype(np.float32)
    x_RB[0, :4] = scale, -scale, 0, scale / 3
    restored_RB = PackedResiduals.of(x_RB, jnp.float32(scale)).restore()
    assert np.abs(restored_RB - x_RB).max() <= scale / 2**23
    assert restored_RB[0, 2] == 0


def test_it_takes_three_bytes_a_number():
    kept = PackedResiduals.of(jnp.zeros((64, 33)), jnp.float32(1))
    assert kept.high_RB.nbytes + kept.low_RB.nbytes == 3 * 64 * 33


def test_what_is_kept_twice_has_the_same_bits():
    x_RB = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)
    once = PackedResiduals.of(x_RB, jnp.float32(5)).restore()
    np.testing.assert_array_equal(PackedResiduals.of(once, jnp.float32(5)).restore(), once)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad):
    z_RE = np.ones((4, 3), np.float32)
    z_RE[2, 1] = bad
    assert not np.isfinite(PackedResiduals.of(z_RE @ z_RE.T, max_norm(z_RE) ** 2).restore()).any()


def test_zeros_are_kept():
    z_RE = jnp.zeros((4, 3))
    assert (
        jax.jit(lambda z: PackedResiduals.of(z @ z.T, max_norm(z) ** 2).restore())(z_RE) == 0
    ).all()
