"""A run directory in a Google Cloud Storage bucket, which an emulator on this machine plays."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import logging
import jax, jax.numpy as jnp, numpy as np
from clip_jax.config import CheckpointConfig, ModelConfig, TrainConfig
from clip_jax.cli.arguments import run_config
from clip_jax.runs import manifest
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.directory import RunDirectory

logging.basicConfig()
logging.getLogger("gcsfs").setLevel("ERROR")
like = {"kernel": jax.ShapeDtypeStruct((1000,), jnp.float32)}
cfg = CheckpointConfig(every_steps=1, every_minutes=None, keep_last=2, keep_every_steps=3)

def save(steps):
    for step in steps:
        for _ in range(3):  # a save that failed is made again: orbax may see an old listing of gcsfs
            with Checkpoints(run.checkpoints, cfg) as checkpoints:
                state = {"kernel": jnp.arange(1000.0) + step}
                checkpoints.save(step, state, metadata={"note": step})
            if manifest.damage(run.checkpoints / str(step)) is None:
                break
            (run.checkpoints / str(step)).rmtree()

def restored():
    with Checkpoints(run.checkpoints, cfg) as checkpoints:
        found = checkpoints.restore(like)
    np.testing.assert_array_equal(found.state["kernel"], np.arange(1000.0) + found.step)
    return found.step, found.metadata["note"]

with RunDirectory("gs://clip/run") as run:
    run.save_config(TrainConfig(seed=5), ModelConfig())
    kept = TrainConfig(seed=5, workdir="gs://clip/run")
    assert run.load_config() == run_config("gs://clip/run") == kept
    for step in range(1, 4):
        run.append_metrics({"step": step})
    save(range(1, 7))
    assert restored() == (6, 6)
    steps = sorted(path.name for path in run.checkpoints.iterdir())
    assert steps == ["3", "5", "6"], steps

    state = run.checkpoints / "6" / "state"
    data = max(state.glob("ocdbt.process_0/d/*"), key=lambda path: path.stat().length)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    assert "other bytes" in manifest.damage(run.checkpoints / "6")
    (run.checkpoints / "6").rmtree()  # moving it aside takes this emulator's missing calls long
    assert restored() == (5, 5)

with RunDirectory("gs://clip/run") as run:
    run.rewind_metrics(2)
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    save([6])
    assert restored() == (6, 6)
print("all is well")
"""


@pytest.fixture
def bucket(tmp_path):
    """The environment under which gs://clip is the emulator's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    emulator = Path(sys.executable).with_name("gcp-storage-emulator")
    arguments = ["start", "--host=127.0.0.1", f"--port={port}", "--default-bucket=clip"]
    with open(tmp_path / "emulator.log", "w") as output:
        process = subprocess.Popen(
            [emulator, *arguments, "--in-memory"], stdout=output, stderr=output
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:  # however long it takes to start on a busy machine
            assert process.poll() is None, (tmp_path / "emulator.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield os.environ | {
            "STORAGE_EMULATOR_HOST": address,  # for gcsfs
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # so that TensorStore looks for no credentials
            "JAX_PLATFORMS": "cpu",
        }
    finally:
        process.kill()
        process.wait()


def test_a_run_lives_in_a_bucket_as_in_a_folder(bucket):
    done = subprocess.run([sys.executable, "-c", RUN], env=bucket, capture_output=True, text=True)
    assert done.stdout.endswith("all is well\n"), done.stderr[-3000:]
    assert "cannot be locked" in done.stderr


COMMANDS = """
import functools, sys
from pathlib import Path
from etils import epath
import orbax.checkpoint as ocp
import clip_jax
from clip_jax.cli.main import main

# The emulator loses writes to one object that depend on each other, which OCDBT has when there are
# many arrays.
ocp.StandardCheckpointHandler = functools.partial(ocp.StandardCheckpointHandler, use_ocdbt=False)

def run(*arguments):
    assert main(list(arguments)) == 0, arguments

train = ("train", *sys.argv[1:], "--workdir", "gs://clip/first", "--steps", "2")
run(*train)
run(*train)  # which has nothing left to do, and writes nothing: that takes this emulator long
loaded = clip_jax.load("gs://clip/first")
assert loaded.tokenizer(["a red circle"]).shape == (1, 8)
assert epath.Path("gs://clip/first/bad_samples.json").exists()
print(sorted(path.name for path in Path().iterdir()))
try:
    clip_jax.load("gs://clip/nowhere")
except FileNotFoundError as error:
    print(error)
"""


def test_the_command_trains_goes_on_and_loads_in_a_bucket(bucket, small, tmp_path):
    (tmp_path / "here").mkdir()
    quick = [
        *small,
        "--data.source",
        "shapes:tiny",
        "--evaluation.max-samples",
        "32",
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *quick],
        env=bucket,
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Resuming from step 2 of gs://clip/first" in done.stderr
    assert "[]" in done.stdout  # no folder that is called gs:
    assert "gs://clip/nowhere" in done.stdout.splitlines()[-1]
