"""The figures of a small loop that libtpu compiled, against a recount by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from clip_jax.planning.compiler import compile_lowered, require_libtpu
from clip_jax.planning.hlo.module import Program
from clip_jax.planning.roofline import compiler_seconds, step_time
from clip_jax.planning.topologies import parse_topology

LAYERS, ROWS, WIDTH = 6, 131_072, 1000
V5E = parse_topology("v5e:1x1")
DEVICES = [SimpleNamespace(coords=(0, 0, 0), slice_index=0)]


@pytest.fixture(scope="module")
def program() -> Program:
    """Six products of (131072, 1000) by (1000, 1000), whose kernels are a stack, one after another."""
    require_libtpu()
    (device,) = V5E.compile_only_devices()
    place = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16, sharding=place)
    stack = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.bfloat16, sharding=place)

    def run(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.maximum(x @ w, 0), None), x, stack)[0]

    return compile_lowered(jax.jit(run).lower(x, stack)).program


def test_operations_are_those_of_six_products(program):
    assert program.flops == LAYERS * 2 * ROWS * WIDTH**2


def test_a_matrix_unit_is_filled_up(program):
    """The depth of 1000 goes up to 1024; 1000 columns pass by in rows of eight."""
    assert program.padded_flops(128) == pytest.approx(LAYERS * 2 * ROWS * 1024 * 1000)


def test_each_product_reads_its_kernel_and_rows_and_writes_rows(program):
    """libtpu 0.0.52 copies the rows before the loop and in each turn too.

    Rows lie along the minor axis, which needs no padding; of the kernels it is 1000, stored as 1024.
    """
    rows, kernel, copies = 2 * ROWS * WIDTH, 2 * WIDTH**2, 1 + LAYERS
    expected = LAYERS * (2 * rows + kernel) + copies * 2 * rows
    assert program.bytes == pytest.approx(expected, abs=1000)
    tiled = expected + LAYERS * 2 * 1000 * 24
    assert program.tiled_bytes == pytest.approx(tiled, abs=50_000)


def test_the_bounds_lie_below_the_compiler_s_own_estimate(program):
    lower, tiled = (step_time(program, V5E, DEVICES, tiled=flag) for flag in (False, True))
    assert lower.compute == pytest.approx(LAYERS * 2 * ROWS * WIDTH**2 / 197e12)
    assert tiled.compute == pytest.approx(1.024 * lower.compute)
    assert tiled.seconds <= compiler_seconds(program, V5E, tiled)
    for work in program.work:
        if work.cycles is not None:
            alone = step_time(Program([work]), V5E, DEVICES, tiled=True)
            assert alone.seconds <= work.count * work.cycles / 1.5e9
