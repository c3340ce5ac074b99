"""libtpu compiles for chips that are not here, and says what it needs."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.planning import gpu_compiler
from clip_jax.planning.compiler import (
    Compiled,
    Refused,
    compile_lowered,
    compiler_error,
    read_refusal,
    require_libtpu,
)
from clip_jax.planning.topologies import parse_topology


def lower(rows: int) -> jax.stages.Lowered:
    """A matrix product and its sum, over the rows of four chips."""
    require_libtpu()
    mesh = Mesh(parse_topology("v5e:2x2").compile_only_devices(), ("data",))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((rows, 1024), jnp.bfloat16, sharding=split)
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=whole)
    return jax.jit(lambda x, w: ((x @ w) ** 2).sum(axis=0), out_shardings=whole).lower(x, w)


def test_a_program_is_compiled_and_read():
    found = compile_lowered(lower(4096))
    assert isinstance(found, Compiled)
    assert found.program.flops == 2 * 1024**3
    assert [c.kind for c in found.program.collectives] == ["all-reduce"]
    assert found.argument_bytes >= 2 * 1024 * (1024 + 1024)
    assert found.peak_bytes >= found.argument_bytes


def test_a_program_that_is_too_large_is_refused_with_what_it_needs():
    found = compile_lowered(lower(2**26))
    assert isinstance(found, Refused)
    assert found.needed_bytes > found.available_bytes > 15 * 2**30


def test_other_errors_are_no_refusals():
    assert read_refusal("INTERNAL: something else") is None
    assert read_refusal("RESOURCE_EXHAUSTED: threads") is None


def test_a_compiler_that_says_nothing_is_named_by_its_error():
    assert "XLA cannot compile this step (RuntimeError)" in str(
        compiler_error(RuntimeError(), "XLA")
    )


def test_a_compiler_s_own_failure_is_one_line():
    class Failing:
        def compile(self, **_):
            raise jax.errors.JaxRuntimeError("INTERNAL: no tiles\n  in %dot.7\n")

    with pytest.raises(
        ValueError, match=r"^libtpu cannot compile this step \(INTERNAL: no tiles\)"
    ):
        compile_lowered(Failing())


def test_products_without_tiles_for_triton_are_compiled_with_cublas():
    options = []

    class Triton:
        def compile(self, compiler_options=None):
            options.append(compiler_options)
            if compiler_options is None:
                raise jax.errors.JaxRuntimeError(f"INTERNAL: {gpu_compiler.NO_TILES} that satisfy")
            return "compiled"

    assert gpu_compiler._compile(Triton()) == "compiled"
    assert options == [None, {"xla_gpu_enable_triton_gemm": False}]


def test_a_missing_libtpu_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[plan\]'"):
        require_libtpu()
