"""The mesh, the table of where parameters go, and batches that divide."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.config import MeshConfig
from clip_jax.models.clip import create_model
from clip_jax.sharding import (
    RULES,
    bytes_per_device,
    check_batch,
    make_mesh,
    mesh_shape,
    parameter_spec,
    shardings,
    to_global,
)
from clip_jax.training.state import dummy_batch


def parameters(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    model = create_model(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *dummy_batch(model.config))
    leaves = jax.tree_util.tree_leaves_with_path(shapes["params"])
    return {sharding.path_name(path): leaf for path, leaf in leaves}


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
        (MeshConfig(fsdp=-1), "mesh.fsdp=-1 must be at least 1"),
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


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "RN50"])
def test_every_large_parameter_is_split(name):
    for parameter, leaf in parameters(name).items():
        spec = parameter_spec(parameter, leaf.shape, 8)
        if leaf.size > 2**16:
            assert "fsdp" in spec, parameter
        if "fsdp" in spec:
            assert leaf.shape[spec.index("fsdp")] % 8 == 0


def test_every_rule_serves_some_parameter():
    names = [n for m in ("ViT-test", "ViT-B-16-SigLIP", "RN-test") for n in parameters(m)]
    first = {
        next(i for i, (rule, _) in enumerate(RULES) if sharding.re.search(rule, n)) for n in names
    }
    assert first == set(range(len(RULES)))


def test_an_axis_that_does_not_divide_stays_whole(mesh):
    assert parameter_spec("projection/kernel", (12, 16), 8) == P()
    assert parameter_spec("projection/kernel", (16, 12), 8) == P("fsdp", None)
    assert parameter_spec("projection/kernel", (16, 12), 1) == P()


def test_an_fsdp_axis_that_would_split_nothing_is_refused(mesh):
    tree = {"projection": {"kernel": jax.ShapeDtypeStruct((4, 6), np.float32)}}
    with pytest.raises(ValueError, match=r"mesh.fsdp=8 divides no width .*\[4, 6\]"):
        shardings(mesh(1, 8), tree)
    places = shardings(mesh(2, 4), tree)
    assert places["projection"]["kernel"] == NamedSharding(mesh(2, 4), P("fsdp", None))


def test_moments_follow_the_rules_of_their_parameters(mesh):
    leaf = jax.ShapeDtypeStruct((2, 16, 64), np.float32)
    tree = {"blocks": {"mlp": {"up": {"kernel": leaf}}}}
    state = {"params": tree, "opt_state": ({"mu": tree},)}
    found = jax.tree.leaves(shardings(mesh(1, 8), state))
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
