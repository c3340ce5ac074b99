"""Seconds and peak memory of importing ViT-L-14 (428 M parameters), in a process of its own.

    python benchmarks/weights_import.py

It first writes the weights, random ones, as open_clip's safetensors in float32 and float16 (2.6 GB
of disk, in a temporary folder). torch is not needed.
"""

import argparse
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ViT-L-14")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "float16"):
            file = write(Path(folder), arguments.model, dtype)
            size = file.stat().st_size
            run = subprocess.run(
                [sys.executable, "-c", IMPORT, file, arguments.model],
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(run.stdout)
            print(
                f"{arguments.model} {dtype}: {size / 1e9:.2f} GB imported in "
                f"{found['seconds']:.1f} s, peak {found['peak_bytes'] / 1e9:.2f} GB "
                f"({found['peak_bytes'] / size:.2f} of the file)"
            )


if __name__ == "__main__":
    main()
