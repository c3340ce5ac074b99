"""A program is compiled again for its dump, whatever the cache holds."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from clip_jax.planning.hlo.dump import compile_with_dump


@pytest.fixture
def cache(tmp_path):
    """A cache that keeps every program, as a command of this process may have left it."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}

    def switch(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    switch(dict(zip(names, (True, str(tmp_path), 0.0), strict=True)))
    yield tmp_path
    switch(before)


def test_texts_are_there_again_after_the_program_was_cached(cache):
    lowered = jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.ones((8, 8)))
    lowered.compile()
    assert any(cache.iterdir())
    for _ in range(2):
        with compile_with_dump(lowered) as (compiled, folder):
            (text,) = folder.glob("*before_optimizations.txt")
            assert "sine" in text.read_text()
        assert compiled(jnp.zeros((8, 8))).sum() == 0
    assert not folder.exists()
    assert jax.config.jax_enable_compilation_cache
