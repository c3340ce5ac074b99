"""Names of pods and GPU machines, as their makers write them."""

import pytest

from clip_jax.planning.topologies import parse_topology


@pytest.mark.parametrize(
    ("name", "chip", "shape", "devices"),
    [
        ("v5e:16x16", "v5e", (16, 16), 256),
        ("v5litepod-256", "v5e", (16, 16), 256),
        ("v6e-256", "v6e", (16, 16), 256),
        ("v4-512", "v4", (4, 8, 8), 256),
        ("v5p-1024", "v5p", (8, 8, 8), 512),
        ("v3-8", "v3", (2, 2), 8),
        ("tpu7x:4x4x8", "tpu7x", (4, 4, 8), 256),
        ("v7x-16", "tpu7x", (2, 2, 2), 16),
        ("v5e:16x16*2", "v5e", (16, 16), 512),
        ("h100:8", "h100", (8,), 8),
        ("a100:16", "a100", (8,), 16),
        ("H200:1", "h200", (1,), 1),
    ],
)
def test_a_name_gives_chips_and_devices(name, chip, shape, devices):
    topology = parse_topology(name)
    assert (topology.chip.name, topology.shape, topology.devices) == (chip, shape, devices)


def test_hosts_and_slices_are_counted():
    assert parse_topology("v5e:16x16*2").hosts == 128
    assert parse_topology("a100:16").slices == 2
    assert parse_topology("h200:1").hosts == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5x:16x16", "there is no chip 'v5x'; nearest"),
        ("v5e", "write a chip and a shape"),
        ("v5e:3x3", "v5e comes as 1x1"),
        ("v5e:16x16x16", "v5e has 2 axes, 3 are given"),
        ("v5e-100", "v5e has 1, 4, 8"),
        ("v5e:16x32", "a v5e pod has 256 chips"),
        ("v4-7", "v4 counts cores, two a chip"),
        ("v5p:5x4x4", "axes of v5p are 1, 2 or multiples of 4"),
        ("v5p:0x4x4", "axes of v5p are 1, 2 or multiples of 4"),
        ("v5e:16x16*0", "at least one slice"),
        ("h100:12", "machines of 8"),
        ("h100:2x2", "write the number of GPUs"),
    ],
)
def test_a_wrong_name_is_refused_with_what_there_is(name, says):
    with pytest.raises(ValueError, match=f"--topology {name.replace('*', '.')}.*{says}"):
        parse_topology(name)
