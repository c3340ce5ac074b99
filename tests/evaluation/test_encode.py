"""Embeddings of whole data sets: order, last batches, devices, processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from clip_jax.evaluation.encode import Encoder, Stopped
from clip_jax.models.clip import CLIP

PROCESS = Path(__file__).parent / "encode_process.py"


def batches_of(images_NHWC, order, size):
    """Batches in some order of the data set, the last one filled up."""
    for start in range(0, len(order), size):
        index_B = np.resize(order[start : start + size], size)
        mask_B = np.arange(size) < len(order) - start
        yield {"image": images_NHWC[index_B], "mask": mask_B, "index": index_B}


@pytest.fixture
def images_NHWC():
    return np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)


@pytest.fixture
def encoder(model, variables, mesh):
    return Encoder(model, variables, mesh, batch_size=8)


def test_images_come_back_in_the_order_of_the_data_set(
    encoder, apply, model, variables, images_NHWC
):
    order = np.random.default_rng(1).permutation(21)
    encoded = encoder.encode_images(batches_of(images_NHWC, order, 8))
    expected_NE = apply(model, "encode_image", variables, images_NHWC)
    np.testing.assert_allclose(encoded.z_NE, expected_NE, atol=2e-6)
    np.testing.assert_array_equal(encoded.index_N, np.arange(21))


def test_masked_samples_are_missing(encoder, images_NHWC):
    (batch,) = batches_of(images_NHWC, np.arange(8), 8)
    batch["mask"][[2, 5]] = False
    assert encoder.encode_images([batch]).index_N.tolist() == [0, 1, 3, 4, 6, 7]


def test_no_batches_give_no_embeddings(encoder):
    assert len(encoder.encode_images([]).z_NE) == 0


def test_the_programs_have_no_effects_for_which_jax_calls_them_through_python(encoder, variables):
    tokens_BL = np.ones((8, 8), np.int32)
    assert not encoder._text.trace(variables, tokens_BL).jaxpr.effects


@pytest.mark.parametrize("texts", [1, 8, 19])
def test_texts_come_back_in_their_order(encoder, apply, model, variables, texts):
    tokens_ML = np.random.default_rng(0).integers(1, 64, (texts, 8)).astype(np.int32)
    expected_ME = apply(model, "encode_text", variables, tokens_ML)
    np.testing.assert_allclose(encoder.encode_texts(tokens_ML), expected_ME, atol=2e-6)


class TracedCLIP(CLIP):
    """Tells which of its methods was traced."""

    def encode_image(self, images_BHWC, *, train=False):
        traced.append("image")
        return super().encode_image(images_BHWC, train=train)

    def encode_text(self, tokens_BL, *, train=False):
        traced.append("text")
        return super().encode_text(tokens_BL, train=train)


traced: list[str] = []


def test_encoders_are_traced_once_however_many_are_made(model, variables, mesh, images_NHWC):
    for scale in (1.0, 2.0):
        changed = jax.tree.map(lambda x: scale * x, variables)  # noqa: B023
        encoder = Encoder(TracedCLIP(model.config), changed, mesh, batch_size=8)
        encoder.encode_images(batches_of(images_NHWC, np.arange(21), 8))
        encoder.encode_texts(np.ones((19, 8), np.int32))
    assert traced == ["image", "text"]


def test_parameters_on_the_mesh_are_not_copied(model, variables, mesh):
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put(variables, place)
    encoder = Encoder(model, placed, mesh, batch_size=8)
    leaves = zip(jax.tree.leaves(encoder.variables), jax.tree.leaves(placed))
    assert all(ours is theirs for ours, theirs in leaves)


def test_encoding_stops_between_batches_when_asked(encoder, images_NHWC):
    answers, read = iter([False, True]), []
    batches = (read.append(1) or batch for batch in batches_of(images_NHWC, np.arange(21), 8))
    with pytest.raises(Stopped):
        encoder.encode_images(batches, should_stop=lambda: next(answers))
    assert len(read) == 2


@pytest.fixture
def processes():
    """Starts this folder's process.py on devices of its own; ends what is left."""
    started = []

    def start(devices: int, *arguments):
        # The emitters as in tests/conftest.py.
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false"
        )
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = [sys.executable, str(PROCESS), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, env=env, **pipes))

    yield start, started
    for process in started:
        with process:
            process.kill()


def test_two_processes_of_two_devices_both_get_what_one_process_gets(
    tmp_path, processes, evaluated_arrays, mesh
):
    start, started = processes
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    files = [tmp_path / f"{rank}.npz" for rank in range(2)]
    for rank, file in enumerate(files):
        start(2, file, address, 2, rank)
    expected = evaluated_arrays(mesh)
    for process in started:
        output = process.communicate(timeout=600)[0].decode()
        assert process.returncode == 0, output
    first, second = (dict(np.load(file)) for file in files)
    assert expected["index"].tolist() == [index for index in range(21) if index != 4]
    for name, alone in expected.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], alone, atol=3e-6, err_msg=name)
