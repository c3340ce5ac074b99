"""Whether all processes run the same code, settings and libraries; which one differs, and where."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import time
import uuid
from pathlib import Path

import jax
from etils import epath

from clip_jax.config import TrainConfig
from clip_jax.config_io import flatten, to_json
from clip_jax.distributed import initialize
from clip_jax.distributed.multihost import allgather_json
from clip_jax.redaction import redact
from clip_jax.runs import provenance

PACKAGE = Path(__file__).parents[1]
# Besides what a checkpoint names: what decodes images and reads tokens.
LIBRARIES = (*provenance.LIBRARIES, "pillow", "simplejpeg", "sentencepiece", "xxhash")
OPTIONAL = ("libtpu", "jax-cuda13-pjrt", "jax-cuda12-pjrt")
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS")
# JAX's own settings, whether by a variable or in the program: they change the numbers.
JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)

# Settings that belong to one process or its machine, and leave the numbers alone.
OWN = (
    "distributed.process_index",
    "distributed.coordinator",
    "data.threads",
    "data.workers",
    "data.data_dir",
)
SHARED_S = 30.0  # until a file that one host has written is seen by all
COME_S = 300.0  # for a process that looks for it, on a busy host
MOST_SHOWN = 5  # differences of a process, and processes


def describe(cfg: TrainConfig) -> dict:
    """What has to be equal on all processes, by name, as JSON."""
    facts = {f"file clip_jax/{name}": digest for name, digest in _files().items()}
    for name, value in flatten(to_json(cfg)).items():
        if name not in OWN:
            facts[f"setting {name}"] = value
    facts["version of python"] = platform.python_version()
    for name in LIBRARIES:
        facts[f"version of {name}"] = importlib.metadata.version(name)
    for name in OPTIONAL:
        try:
            facts[f"version of {name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[f"version of {name}"] = None
    for name in VARIABLES:
        facts[f"variable {name}"] = redact(os.environ.get(name))
    for name in JAX_SETTINGS:
        facts[f"JAX setting {name}"] = str(getattr(jax.config, name, None))
    return {"host": socket.gethostname(), "facts": facts}


def differences(descriptions: dict[int, dict]) -> str:
    """In what processes differ from process 0, for a person; "" where all are alike."""
    first, parts = descriptions[0], []
    for index in sorted(descriptions):
        facts, expected = descriptions[index]["facts"], first["facts"]
        names = sorted(
            (
                name
                for name in facts.keys() | expected.keys()
                if facts.get(name) != expected.get(name)
            ),
            # A version that differs explains files that do.
            key=lambda name: (name.startswith("file "), not name.startswith("version "), name),
        )
        if not names:
            continue
        shown = [_difference(name, facts, expected) for name in names[:MOST_SHOWN]]
        if len(names) > MOST_SHOWN:
            shown.append(f"{len(names) - MOST_SHOWN} more")
        parts.append(
            f"process {index} on {descriptions[index]['host']} differs from process 0 on "
            f"{first['host']} in {', '.join(shown)}"
        )
    if not parts:
        return ""
    more = len(parts) - MOST_SHOWN
    shown = "; ".join(parts[:MOST_SHOWN]) + (
        f"; and {more} more processes differ" if more > 0 else ""
    )
    return f"{shown}. Start all processes with the same code, settings, libraries and files."


def check_equal(facts: dict[str, object]):
    """Compare what each process has computed for itself, such as a fingerprint of its data.

    Args:
      facts: by name, as JSON. All processes must call it together.

    Raises:
      ValueError: on every process; it names who differs from process 0, with both values.
    """
    described = allgather_json({"host": socket.gethostname(), "facts": facts})
    if text := differences(dict(enumerate(described))):
        raise ValueError(text)


def check_same_directory(path: os.PathLike):
    """Whether all processes see one run directory, before anything is saved in it.

    Raises:
      ValueError: this process does not see the file that process 0 has just written there.
    """
    if not initialize.several():
        return
    key = "clip_jax/run directory"
    if initialize.own_index() == 0:
        token = f".seen-{uuid.uuid4().hex}"
        (epath.Path(path) / token).write_text("")
        initialize.store().key_value_set(key, token)
    else:
        token = initialize.store().blocking_key_value_get(key, int(SHARED_S * 1000))
        end = time.monotonic() + SHARED_S  # a network file system may show it late
        while not (epath.Path(path) / token).exists():
            if time.monotonic() > end:
                raise ValueError(
                    f"workdir={os.fspath(path)} on {socket.gethostname()} is not the folder that "
                    "process 0 sees under this name: give a --workdir that all hosts share, or a "
                    "bucket's URL"
                )
            time.sleep(0.2)
    initialize.barrier("all see the run directory", SHARED_S + COME_S)
    if initialize.own_index() == 0:
        (epath.Path(path) / token).unlink()


def _difference(name: str, facts: dict, expected: dict) -> str:
    if name.startswith("file "):
        if name not in facts:
            return f"{name} (it is missing)"
        return f"{name} ({'other content' if name in expected else 'process 0 has none'})"
    value, wanted = (_short(each.get(name)) for each in (facts, expected))
    return f"{name} ({value}, where process 0 has {wanted})"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _files() -> dict[str, str]:
    """A short hash of every source file of ours."""
    return {
        path.relative_to(PACKAGE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(PACKAGE.rglob("*.py"))
    }
