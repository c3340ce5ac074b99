"""Tests of StableHLO artifacts."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clip_jax.hardware import traced_for
from clip_jax.models.clip import CLIP
from clip_jax.weights.stablehlo import export_portable


@pytest.mark.parametrize("name", ["resnet", "siglip"])
def test_an_artifact_gives_the_models_embeddings_for_any_batch(name, configs, variables, tmp_path):
    model = CLIP(configs[name])
    export_portable(model, variables[name], tmp_path / "a")
    weights = dict(np.load(tmp_path / "a" / "weights.npz"))
    rng = np.random.default_rng(0)
    size, length = model.config.vision.image_size, model.config.text.context_length
    inputs = {
        "encode_image": lambda n: rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        "encode_text": lambda n: rng.integers(0, 50, (n, length)).astype(np.int32),
    }
    for method, batch_of in inputs.items():
        program = jax.export.deserialize((tmp_path / "a" / f"{method}.bin").read_bytes())
        assert set(program.platforms) == {"cpu", "cuda", "tpu"}
        whole = batch_of(5)
        expected = jax.jit(lambda v, b, m=method: model.apply(v, b, method=m))(
            variables[name], whole
        )
        for batch, rows in ((whole, expected), (whole[:1], expected[:1])):
            np.testing.assert_allclose(program.call(weights, batch), rows, atol=1e-6)


def test_it_is_the_same_on_a_gpu_whose_own_forms_no_file_can_hold(configs, variables, tmp_path):
    model, hopper = CLIP(configs["plain"]), SimpleNamespace(platform="gpu", device_kind="H100")
    export_portable(model, variables["plain"], tmp_path / "here")
    with traced_for(hopper):
        export_portable(model, variables["plain"], tmp_path / "there")
    for name in ("encode_image.bin", "encode_text.bin"):
        here, there = (
            [line for line in program.mlir_module().splitlines() if not line.startswith("#loc")]
            for place in ("here", "there")
            for program in [jax.export.deserialize((tmp_path / place / name).read_bytes())]
        )
        assert here == there


def test_the_example_beside_it_runs_without_clip_jax(configs, variables, tmp_path):
    export_portable(CLIP(configs["plain"]), variables["plain"], tmp_path / "a", platforms=["cpu"])
    run = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.modules['clip_jax'] = None; import runpy; "
         f"runpy.run_path({str(tmp_path / 'a' / 'run.py')!r}, run_name='__main__')"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(json.loads(run.stdout.split(":")[1])[0]) == 2


def test_mistakes_are_named(configs, variables, tmp_path):
    model = CLIP(configs["plain"])
    with pytest.raises(ValueError, match="platforms"):
        export_portable(model, variables["plain"], tmp_path / "a", platforms=["gpu"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        export_portable(model, variables["plain"], tmp_path / "b")
    assert not (tmp_path / "a").exists()
