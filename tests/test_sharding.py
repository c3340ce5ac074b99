"""The mesh, the table of where parameters go, and batches that divide."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.config import MeshConfig
from clip_jax.models.architectures import ARCHITECTURES, model_config
from clip_jax.models.clip import CLIP, init_variables, sharding_rows
from clip_jax.sharding import (
    bytes_per_device,
    check_batch,
    make_mesh,
    mesh_shape,
    parts_of,
    sharding_of,
    shardings,
    to_global,
)


def parameters(model: CLIP) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(shapes["params"])
    return {sharding.path_name(path): leaf for path, leaf in leaves}


def shallow(name: str) -> CLIP:
    """An architecture with one block a stage: the others are as large."""
    config = model_config(name)
    once = {"depth": 1, "depths": (1, 1, 1, 1)}
    towers = {side: getattr(config, side).with_known(**once) for side in ("vision", "text")}
    return CLIP(dataclasses.replace(config, **towers))


@pytest.mark.parametrize(
    ("cfg", "shape"),
    [
        (MeshConfig(), (8, 1)),
        (MeshConfig(fsdp=8), (1, 8)),
        (MeshConfig(fsdp=2), (4, 2)),
        (MeshConfig(data=2, fsdp=4), (2, 4)),
    ],
)
def test_the_axes_take_all_devices(cfg, shape):
    mesh = make_mesh(cfg)
    assert mesh_shape(cfg, 8) == shape == mesh.devices.shape
    assert mesh.axis_names == ("data", "fsdp")
    assert len({device.id for device in mesh.devices.flat}) == 8


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (MeshConfig(data=3), "mesh.data=3 times mesh.fsdp=1 does not make the 8 devices"),
        (MeshConfig(fsdp=3), "mesh.fsdp=3 .* divisor of 8"),
        (MeshConfig(fsdp=16), "mesh.fsdp=16"),
        (MeshConfig(data=0), "mesh.data=0 must be at least 1"),
        (MeshConfig(slices=3), "mesh.slices=3 must divide the data axis of 8"),
        (MeshConfig(slices=2), "mesh.slices=2, and the 8 devices lie in 1"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused_by_its_setting(cfg, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(cfg)


def test_slices_split_the_data_axis_and_never_the_parameters():
    class Chip:
        platform, process_index = "tpu", 0

        def __init__(self, index):
            self.id, self.slice_index = index, index // 4
            self.device_kind, self.coords, self.core_on_chip = "TPU v4", (index % 4, 0, 0), 0

    mesh = make_mesh(MeshConfig(fsdp=2, slices=2), [Chip(index) for index in range(8)])
    for row in mesh.devices:
        assert len({chip.slice_index for chip in row}) == 1
    assert [row[0].slice_index for row in mesh.devices] == [0, 0, 1, 1]


def distinct() -> list[str]:
    """The architectures, but for those that differ in what no matrix shows."""
    found = {}
    for name, config in ARCHITECTURES.items():
        sizes = {"image_size": 448, "context_length": 77, "activation": "gelu", "norm_epsilon": 1.0}
        found.setdefault((config.vision.with_known(**sizes), config.text.with_known(**sizes)), name)
    return list(found.values())


@pytest.mark.parametrize("name", distinct())
def test_every_architecture_is_split_evenly_over_any_fsdp(name):
    model = shallow(name)
    rows, found = sharding_rows(model.config), parameters(model)
    total = sum(leaf.size for leaf in found.values())
    for fsdp in (2, 8, 64, 256):
        parts = {n: parts_of(n, leaf.shape, fsdp, rows=rows) for n, leaf in found.items()}
        for n, split in parts.items():
            axes = zip(split or (), found[n].shape)
            assert all(size % count == 0 for count, size in axes), n
        held = sum(leaf.size / math.prod(parts[n] or (1,)) for n, leaf in found.items())
        whole = (held - total / fsdp) * fsdp / (fsdp - 1)
        assert total < 5e6 or whole < 0.01 * total, (fsdp, whole / total)


def test_a_size_that_divides_no_axis_is_split_over_several():
    model = shallow("ViT-bigG-14")
    rows, found = sharding_rows(model.config), parameters(model)
    name = "image/transformer/blocks/attention/qkv/kernel"
    assert found[name].shape == (1, 1664, 3 * 1664)  # 2**7 times 13: 256 divides neither
    assert parts_of(name, found[name].shape, 256, rows=rows) == (1, 128, 2)
    up = "image/transformer/blocks/mlp/up/kernel"
    assert parts_of(up, found[up].shape, 256, rows=rows) == (1, 1, 256)  # the second choice
    assert parts_of(up, found[up].shape, 64, rows=rows) == (1, 64, 1)


def test_every_row_serves_some_parameter():
    for name in ("ViT-B-32", "ViT-B-16-SigLIP", "RN50"):
        config = model_config(name)
        names = {n for m in ("ViT-B-32", "ViT-B-16-SigLIP", "RN50") for n in parameters(shallow(m))}
        for pattern, _ in sharding_rows(config):
            assert any(re.search(pattern, n) for n in names), pattern


def test_small_arrays_gains_and_biases_stay_whole():
    rows = ((r"\bimage/.*projection/kernel$", 0),)
    assert parts_of("image/projection/kernel", (12, 16), 8, rows=rows) is None
    assert parts_of("image/projection/kernel", (16, 12), 8, rows=rows) == (8, 1)
    assert parts_of("image/projection/kernel", (16, 12), 1, rows=rows) is None
    assert parts_of("image/conv/kernel", (3, 3, 64, 128), 8) == (1, 1, 1, 8)  # no row: the largest
    assert parts_of("image/conv/kernel", (3, 3, 4, 8), 8) is None
    assert parts_of("image/transformer/blocks/mlp/up/bias", (48, 8192), 8) is None
    assert parts_of("image/blocks/mlp/up/kernel", (64, 24, 100), 8) == (1, 8, 1)  # layers stay


def test_several_axes_are_split_as_the_compiler_is_told(mesh):
    on, w_XY = mesh(1, 8), np.arange(12 * 6.0, dtype=np.float32).reshape(12, 6)
    place = sharding_of(on, (4, 2))
    x_BX = jax.device_put(np.ones((8, 12), np.float32), sharding.batch_sharding(on))

    @functools.partial(jax.jit, out_shardings=place)
    def step(w_XY, x_BX):
        constrain = sharding.constrain_batch(on)
        return w_XY - jax.grad(lambda w_XY: jnp.square(constrain(x_BX @ w_XY)).sum())(w_XY)

    found = step(jax.device_put(w_XY, place), x_BX)
    assert {shard.data.shape for shard in found.addressable_shards} == {(3, 3)}
    whole = jax.device_put(w_XY, sharding.replicated(on))
    np.testing.assert_allclose(found, step(whole, x_BX), rtol=1e-6)
    halves = jax.device_put(w_XY, sharding_of(on, (4, 1)))  # 4 of 8: two copies of each part
    assert {shard.data.shape for shard in halves.addressable_shards} == {(3, 6)}


def test_what_is_left_whole_is_named_with_its_bytes(mesh):
    def warning(on, **shapes):
        tree = {name: jax.ShapeDtypeStruct(s, np.float32) for name, s in shapes.items()}
        wanted = shardings(on, tree)
        return sharding.replication_warning(
            on,
            {
                name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=wanted[name])
                for name, x in tree.items()
            },
        )

    assert warning(mesh(1, 8), kernel=(64, 128), other=(11, 13)) is None
    odd = warning(mesh(1, 8), kernel=(64, 128), odd_kernel=(513, 511))
    assert "mesh.fsdp=8" in odd and "odd_kernel (1.0 MiB)" in odd
    assert warning(mesh(8, 1), odd_kernel=(513, 511)) is None


def test_an_fsdp_axis_that_would_split_nothing_is_refused(mesh):
    tree = {"projection": {"kernel": jax.ShapeDtypeStruct((4, 6), np.float32)}}
    rows = (("projection/kernel", 0),)
    with pytest.raises(ValueError, match=r"mesh.fsdp=8 divides no width .*\[4, 6\]"):
        shardings(mesh(1, 8), tree, rows=rows)
    wanted = shardings(mesh(2, 4), tree, rows=rows)
    assert wanted["projection"]["kernel"] == NamedSharding(mesh(2, 4), P("fsdp", None))


def test_moments_follow_the_rules_of_their_parameters(mesh):
    leaf = jax.ShapeDtypeStruct((2, 16, 64), np.float32)
    tree = {"blocks": {"mlp": {"up": {"kernel": leaf}}}}
    state = {"params": tree, "opt_state": ({"mu": tree},)}
    found = jax.tree.leaves(shardings(mesh(1, 8), state, rows=((r"blocks/mlp/up/kernel$", 1),)))
    assert {place.spec for place in found} == {P(None, "fsdp", None)}
    on_devices = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=found[0])
    assert bytes_per_device([on_devices]) == 2 * 2 * 64 * 4


@pytest.mark.parametrize(
    ("size", "parts", "nearest"), [(33, 1, 32), (3, 1, 8), (0, 1, 8), (40, 2, 32), (44, 2, 48)]
)
def test_a_batch_that_does_not_divide_is_answered_with_one_that_does(mesh, size, parts, nearest):
    with pytest.raises(ValueError, match=rf"data.batch_size={size} .*that does is {nearest}$"):
        check_batch("data.batch_size", size, mesh(8), parts=parts)
    check_batch("data.batch_size", nearest, mesh(8), parts=parts)


def test_the_rows_of_a_process_become_the_batch_of_all_devices(mesh):
    on = mesh(4, 2)
    rows = {"tokens": np.arange(16).reshape(8, 2)}
    batch = to_global(on, rows)
    np.testing.assert_array_equal(batch["tokens"], rows["tokens"])
    assert batch["tokens"].sharding == NamedSharding(on, P(("data", "fsdp")))
    pinned = jax.jit(sharding.constrain_batch(on))(rows["tokens"])
    assert pinned.sharding.is_equivalent_to(batch["tokens"].sharding, 2)
