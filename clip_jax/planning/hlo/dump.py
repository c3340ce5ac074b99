"""Compiles a program and reads what the compiler wrote down about it on the way."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def compile_with_dump(
    lowered: jax.stages.Lowered, **options: bool | int | str
) -> Iterator[tuple[jax.stages.Compiled, Path]]:
    """The compiled program, and a folder with the texts of its stages while the context lasts.

    It is compiled again: JAX's cache would give it back without them. Its key does not hold where the
    texts go.

    Args:
      lowered: any program.
      options: more of the compiler's.

    Raises:
      jax.errors.JaxRuntimeError: it does not compile.
    """
    with tempfile.TemporaryDirectory(prefix="clip_jax_plan_") as folder, _no_cache():
        options |= {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        yield lowered.compile(compiler_options=options), Path(folder)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    was_on = jax.config.jax_enable_compilation_cache

    def switch(on: bool):
        jax.config.update("jax_enable_compilation_cache", on)
        compilation_cache.reset_cache()  # whether it is on is looked up once

    switch(False)
    try:
        yield
    finally:
        switch(was_on)
