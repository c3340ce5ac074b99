"""Seconds and peak memory of importing ViT-L-14 (428 M parameters), in a process of its own.

    python benchmarks/weights_import.py

It first writes the weights, random ones, as open_clip's safetensors in float32 and float16 (2.6 GB
of disk, in a temporary folder). Where torch is there, it also writes them as .pt, in its format of today and
in that from before version 1.6; torch is not needed to read them.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from clip_jax.models.architectures import model_config
from clip_jax.weights.export import export
from clip_jax.weights.mapping import abstract_variables

IMPORT = """
import json, pathlib, sys, time
import jax
from clip_jax import load
start = time.perf_counter()
jax.block_until_ready(load(sys.argv[1], sys.argv[2]).variables)
seconds = time.perf_counter() - start
# Not getrusage, whose peak starts with that of the process which forked this one.
status = pathlib.Path("/proc/self/status").read_text()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
"""


def write(folder: Path, name: str, dtype: str) -> Path:
    """A file of random weights."""
    config = model_config(name)
    rng = np.random.default_rng(0)
    flat = {
        path: rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in abstract_variables(config).items()
    }
    nested: dict = {}
    for path, array in flat.items():
        *parents, last = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = array
    export(folder / dtype, config, nested, to="open_clip", dtype=dtype)
    return folder / dtype / "open_clip_model.safetensors"


def as_torch(file: Path) -> list[Path]:
    """The same weights as torch saves them, if torch is there."""
    if importlib.util.find_spec("torch") is None:
        return []
    paths = [file.with_name("zip.pt"), file.with_name("old.pt")]
    script = """
import sys, safetensors.torch, torch
state = safetensors.torch.load_file(sys.argv[1])
torch.save(state, sys.argv[2])
torch.save(state, sys.argv[3], _use_new_zipfile_serialization=False)
"""
    subprocess.run([sys.executable, "-c", script, file, *paths], check=True)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ViT-L-14")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "float16"):
            first = write(Path(folder), arguments.model, dtype)
            for file in (first, *(as_torch(first) if dtype == "float32" else ())):
                show(file, arguments.model, dtype)


def show(file: Path, model: str, dtype: str):
    """Import a file in a process of its own, and print how long it took and what it needed."""
    size = file.stat().st_size
    run = subprocess.run(
        [sys.executable, "-c", IMPORT, file, model], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    print(
        f"{model} {dtype} {file.suffix}: {size / 1e9:.2f} GB imported in {found['seconds']:.1f} s, "
        f"peak {found['peak_bytes'] / 1e9:.2f} GB ({found['peak_bytes'] / size:.2f} of the file)"
    )


if __name__ == "__main__":
    main()
