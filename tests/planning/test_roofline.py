"""A step's time follows from what it computes, moves and sends."""

import pytest

from clip_jax.planning.hlo.module import Collective, Program, Work
from clip_jax.planning.roofline import collective_seconds, places_of, step_time
from clip_jax.planning.topologies import parse_topology


class Device:
    """What a compile-only device says of its place."""

    def __init__(self, coords, slice_index=0):
        self.coords, self.slice_index = coords, slice_index


def plane(side: int, slices: int = 1) -> list[Device]:
    return [Device((x, y, 0), s) for s in range(slices) for y in range(side) for x in range(side)]


POD, DEVICES = parse_topology("v5e:16x16"), plane(16)
MB = 10**6


def seconds(kind: str, group: tuple[int, ...], topology=POD, devices=DEVICES) -> float:
    collective = Collective(kind, group, 100 * MB, "f32", 1, "")
    return collective_seconds(collective, topology, places_of(topology, devices))


def test_an_all_reduce_of_a_pod_uses_four_links_twice():
    assert seconds("all-reduce", tuple(range(256))) == pytest.approx(
        2 * 100e6 * 255 / 256 / (4 * 50e9)
    )


def test_a_gather_along_one_axis_uses_its_two_links():
    assert seconds("all-gather", tuple(range(16))) == pytest.approx(100e6 * 15 / 16 / (2 * 50e9))


def test_half_of_an_axis_is_no_ring():
    assert seconds("all-gather", tuple(range(8))) == pytest.approx(100e6 * 7 / 8 / 50e9)


def test_alone_there_is_nothing_to_send():
    assert seconds("all-reduce", (5,)) == 0


def test_between_slices_each_chip_sends_its_share_over_the_slow_network():
    topology, devices = parse_topology("v5e:16x16*2"), plane(16, slices=2)
    both = seconds("all-reduce", tuple(range(512)), topology, devices)
    inside = 2 * 100e6 * 255 / 256 / (4 * 50e9)
    between = 2 * (100e6 / 256) / 2 / 3.125e9
    assert both == pytest.approx(inside + between)


def test_gpus_of_one_machine_share_nvlink_and_machines_the_network():
    topology = parse_topology("h100:16")
    inside = seconds("all-reduce", tuple(range(8)), topology, [])
    across = seconds("all-reduce", tuple(range(16)), topology, [])
    assert inside == pytest.approx(2 * 100e6 * 7 / 8 / 450e9)
    assert across == pytest.approx(inside + 2 * (100e6 / 8) / 2 / 50e9)


@pytest.mark.parametrize(
    ("work", "bytes_sent", "bound"),
    [
        (Work(197e12, 0, 1e9, 1), 0, "compute"),
        (Work(1e12, 0, 819e9, 1), 0, "memory"),
        (Work(1e12, 0, 1e9, 1), 10**12, "interconnect"),
    ],
)
def test_the_longest_part_bounds_the_step(work, bytes_sent, bound):
    sent = [Collective("all-reduce", tuple(range(256)), bytes_sent, "f32", 1, "")]
    time = step_time(Program([work], sent), POD, DEVICES)
    assert time.bound == bound
    assert time.seconds == pytest.approx(max(time.compute + time.memory, time.interconnect))


def test_operations_that_must_be_exact_take_six_passes():
    time = step_time(Program([Work(0, 197e12, 0, 2)], []), POD, DEVICES)
    assert time.compute == pytest.approx(12)
