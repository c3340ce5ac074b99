"""What the machine lacks is one line and exit code 2, or is done without."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from fsspec.registry import known_implementations
from jax._src import compilation_cache

from clip_jax.cli import environment
from clip_jax.cli import main as cli

ROOT = Path(__file__).parents[2]
TINY = ["--model.name", "ViT-test", "--data.batch-size", "8", "--evaluation.batch-size", "8"]
TINY += ["--steps", "4", "--optimizer.warmup-steps", "2", "--data.accumulation", "1"]


def run(*args: str, unset=(), **variables) -> subprocess.CompletedProcess:
    """`clip-jax` in a process whose environment lacks some variables and has others."""
    names = {*unset, "XLA_FLAGS", "NPROC"}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    kept |= {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "clip_jax_command", *args]
    return subprocess.run(command, env=kept, capture_output=True, text=True)


@pytest.fixture
def source(tmp_path) -> list[str]:
    (tmp_path / "captions.csv").write_text("file,caption\n" + "a.png,a\n" * 16)
    place = ["--workdir", str(tmp_path / "run"), "--data.source", f"pairs:{tmp_path}/captions.csv"]
    return ["--tokenizer.kind", "clip", *place]


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("platform", ["cuda", "cpuu"])
def test_a_backend_that_is_not_there_is_named(platform, source):
    line = one_line(run("train", *TINY, *source, JAX_PLATFORMS=platform))
    assert line.startswith(f"clip-jax: JAX cannot use JAX_PLATFORMS={platform}: ")
    assert "Unset JAX_PLATFORMS" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_ENABLE_X64", "1"),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
        ("JAX_DISABLE_JIT", "1"),
    ],
)
def test_a_switch_under_which_no_step_compiles_is_named(name, value, source):
    assert f"clip-jax: {name}=" in one_line(run("train", *TINY, *source, **{name: value}))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without an entry")
@pytest.mark.parametrize("name", ["JAX_ENABLE_X64", "JAX_DEFAULT_PRNG_IMPL", "JAX_NUM_CPU_DEVICES"])
def test_a_variable_that_jax_refuses_while_it_loads_is_named(name):
    line = one_line(run("models", **{name: "nonsense"}))
    assert line.startswith("clip-jax: ") and name in line.upper() and "nonsense" in line


def test_no_home_and_no_entry_in_passwd_is_no_hindrance(tmp_path):
    code = (
        "import os, sys; from clip_jax.cli.main import main\n"
        "os.setgroups([]); os.setgid(61234); os.setuid(61234)\n"
        "sys.exit(main(['models', 'ViT-test']))"
    )
    kept = {name: os.environ[name] for name in ("PATH", "JAX_PLATFORMS") if name in os.environ}
    kept |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ViT-test" in done.stdout and "set XDG_CACHE_HOME" in done.stderr


def test_out_of_device_memory_says_what_needs_less(monkeypatch, capsys, source):
    def exhausted(cfg, began):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes."
        )

    monkeypatch.setattr(cli, "train", exhausted)
    monkeypatch.setattr(cli, "_cache_compiled_programs", lambda: None)
    assert cli.main(["train", *TINY, *source, "--data.batch-size", "64"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Out of device memory at 68719476736 bytes. A step needs about" in line
    peaks = [float(text) for text in re.findall(r"([\d.]+) GiB", line)]
    assert peaks[0] >= max(peaks[1:])
    for flags in ("--model.remat full", "--data.accumulation 2", "--data.batch-size 32"):
        assert flags in line


def test_another_error_of_the_runtime_keeps_its_traceback():
    assert environment.explain(jax.errors.JaxRuntimeError("INTERNAL: ours")) is None
    assert environment.explain(AssertionError("ours")) is None


PROGRAM = """
import os, sys, json, warnings
from fsspec.registry import known_implementations
import jax
from clip_jax.cli import environment
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
environment.replace_damaged_programs()
warnings.simplefilter("ignore")
print(float(jax.jit(lambda x: x * 3 + 1)(2.0)))
"""


def test_a_flipped_bit_of_a_cached_program_is_never_run():
    program = np.random.default_rng(0).integers(0, 40, 4000, np.uint8).tobytes()
    kept, noticed = environment.compress(program), 0
    assert compilation_cache.decompress_executable(kept) == program
    for at in range(8, len(kept), 5):
        flipped = bytearray(kept)
        flipped[at] ^= 1 << at % 8
        try:
            found = compilation_cache.decompress_executable(bytes(flipped))
        except Exception:
            noticed += 1
        else:
            assert found == program
    assert noticed > 0.95 * len(range(8, len(kept), 5))


def test_a_damaged_program_of_the_cache_is_written_again(tmp_path):
    def compiled() -> dict:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cache")]
        kept = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "7.0"
        return {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*-cache")}

    whole = compiled()
    assert whole
    for name, content in whole.items():
        (tmp_path / "cache" / name).write_bytes(content[: len(content) // 2])
    again = compiled()
    assert again.keys() == whole.keys()
    assert all(len(content) > len(whole[name]) // 2 for name, content in again.items())


def test_a_mistake_is_exit_code_2_also_where_nobody_can_be_told():
    script = (
        "import sys; from clip_jax.cli.main import main; sys.exit(main(['train', '--workdir', '']))"
    )
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=full)
    assert ended.returncode == 2


def test_the_package_of_a_storage_that_is_not_installed_is_named(monkeypatch, capsys):
    entry = {"class": "no_such_package.core.FileSystem", "err": "Install no_such_package"}
    monkeypatch.setitem(known_implementations, "absent", entry)
    for source in ("tar:absent://bucket/0.tar", "folder:absent://bucket/a"):
        assert cli.main(["data", "stats", source]) == 2
        said = capsys.readouterr().err
        assert "Install no_such_package: pip install no_such_package" in said
        assert said.count("\n") == 1
