"""The trace of some steps. In a process of its own: a profiler beside libtpu's compiler crashes."""

import importlib.machinery
import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from clip_jax.training.profiling import Profile

TRACE = """
import sys
from pathlib import Path
import jax.numpy as jnp
from clip_jax.training.profiling import Profile

root = Path(sys.argv[1])
count = lambda name: len(list((root / name).rglob("*.xplane.pb")))
with Profile((2, 3), root / "some") as profile:
    for step in range(1, 6):
        profile.before(step)
        profile.after(step, jnp.ones(3) * step)
        assert count("some") == (step >= 3), step
with Profile((2, 9), root / "short") as profile:
    profile.before(5)
    assert count("short") == 0
assert count("short") == 1
with Profile(None, root / "none") as profile:
    profile.before(1)
    profile.after(1, None)
assert count("none") == 0
"""


def test_the_steps_that_are_named_are_traced_also_where_they_are_cut_short(tmp_path):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", TRACE, str(tmp_path)], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("steps", [(0, 3), (5, 4)])
def test_steps_that_do_not_rise_are_refused_by_name(steps, tmp_path):
    with pytest.raises(ValueError, match=r"logging\.profile_steps"):
        Profile(steps, tmp_path)


@pytest.mark.parametrize("platforms", [None, "cpu", "tpu,cpu"])
@pytest.mark.parametrize("installed", [True, False])
def test_a_trace_that_would_end_the_process_is_refused_with_the_mend(
    platforms, installed, tmp_path, monkeypatch
):
    spec = importlib.machinery.ModuleSpec("libtpu", None) if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        if installed and platforms != "cpu":
            with pytest.raises(ValueError, match="JAX_PLATFORMS=cpu"):
                Profile((2, 3), tmp_path)
        else:
            Profile((2, 3), tmp_path)
        Profile(None, tmp_path)
    finally:
        jax.config.update("jax_platforms", before)
