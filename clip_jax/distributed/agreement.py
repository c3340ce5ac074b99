"""Whether all processes run the same code, settings and libraries; which one differs, and where."""

import hashlib
import importlib.metadata
import os
import platform
import socket
from pathlib import Path

from clip_jax.config import TrainConfig
from clip_jax.config_io import flatten, to_json
from clip_jax.redaction import redact
from clip_jax.runs import provenance

PACKAGE = Path(__file__).parents[1]
# Besides what a checkpoint names: what decodes images and reads tokens.
LIBRARIES = (*provenance.LIBRARIES, "pillow", "simplejpeg", "sentencepiece", "xxhash")
OPTIONAL = ("libtpu", "jax-cuda13-pjrt", "jax-cuda12-pjrt")
VARIABLES = ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_PLATFORMS", "XLA_FLAGS")

# Settings that belong to one process or its machine, and leave the numbers alone.
OWN = (
    "distributed.process_index",
    "distributed.coordinator",
    "data.threads",
    "data.workers",
    "data.data_dir",
)
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
    told = "; ".join(parts[:MOST_SHOWN]) + (
        f"; and {more} more processes differ" if more > 0 else ""
    )
    return f"{told}. Start all processes with the same code, settings and libraries."


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
