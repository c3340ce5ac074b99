"""A step's time follows from what it computes, moves and sends."""

import dataclasses

import pytest

from clip_jax.planning.hlo.collectives import Collective
from clip_jax.planning.hlo.convolutions import Product
from clip_jax.planning.hlo.module import Program, Work
from clip_jax.planning.roofline import collective_seconds, compiler_seconds, places_of, step_time
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


@pytest.mark.parametrize(
    ("name", "passes"), [("v5e:1x1", 6), ("a100:1", 312 / 19.5), ("b200:1", 2250 / 75)]
)
def test_operations_that_must_be_exact_take_several_passes(name, passes):
    place = parse_topology(name)
    program = Program([Work(0, place.chip.device_flops, 0, 2)], [])
    assert step_time(program, place, DEVICES[:1]).compute == pytest.approx(2 * passes)


def sent(bytes_sent: int, *, synchronous: bool) -> Collective:
    group = tuple(range(256))
    return Collective("all-reduce", group, bytes_sent, "f32", 1, "", synchronous=synchronous)


def test_a_collective_beside_which_nothing_runs_is_added_to_the_step():
    """100 MB around a pod: 2 x 100 MB x 255/256 over four links of 50 GB/s."""
    work, seconds = [Work(197e12, 0, 1e9, 1)], 2 * 100e6 * 255 / 256 / 200e9
    alone, beside = (
        step_time(Program(work, [sent(100 * MB, synchronous=flag)]), POD, DEVICES)
        for flag in (True, False)
    )
    assert (alone.exposed, alone.hidden) == (pytest.approx(seconds), 0)
    assert (beside.exposed, beside.hidden) == (0, pytest.approx(seconds))
    assert alone.seconds == pytest.approx(1 + seconds)
    assert beside.seconds == pytest.approx(1)


def test_what_cannot_be_hidden_is_longer_than_the_rest():
    program = Program([Work(197e12, 0, 1e9, 1)], [sent(10**12, synchronous=False)])
    time = step_time(program, POD, DEVICES)
    assert time.seconds == time.hidden > 1


def test_a_copy_in_the_background_uses_the_memory_while_arithmetic_limits_the_rest():
    product = Work(197e12, 0, 0.25 * 819e9, 1)  # 1 s, in a quarter of which memory is busy
    small, large = (Work(0, 0, s * 819e9, 1, background=True) for s in (0.5, 2.0))
    assert step_time(Program([product, small]), POD, DEVICES).seconds == pytest.approx(1)
    assert step_time(Program([product, large]), POD, DEVICES).seconds == pytest.approx(1 + 2 - 0.75)


def test_arithmetic_in_the_background_takes_its_time():
    products = [Work(197e12, 0, 0, 1), Work(197e12, 0, 0, 1, background=True)]
    assert step_time(Program(products), POD, DEVICES).seconds == pytest.approx(2)


def test_tiles_and_matrix_units_lengthen_the_bound():
    """A product of depth 64 fills half of a unit of 128, and a quarter of one of 256."""
    product = Product(197e12, 1024, 1024, 64)
    arithmetic = Work(197e12, 0, 0, 1, products=(product,))
    traffic = Work(0, 0, 819e9, 1, tiled_bytes=1.5 * 819e9)
    program = Program([arithmetic, traffic])
    assert step_time(program, POD, DEVICES).seconds == pytest.approx(1 + 1)
    assert step_time(program, POD, DEVICES, tiled=True).seconds == pytest.approx(2 + 1.5)
    newer = parse_topology("v6e:16x16")
    assert step_time(program, newer, DEVICES, tiled=True).compute == pytest.approx(4 * 197 / 918)


def test_the_compiler_s_cycles_take_their_time_by_the_clock():
    """Kernels and collectives, of which it estimates nothing, are added as the bound has them."""
    kernel = Work(197e12, 0, 0, 1)
    known = Work(1e12, 0, 0, 3, cycles=750_000_000)  # half a second at 1.5 GHz
    copy = Work(0, 0, 819e9, 1, background=True)
    program = Program([kernel, known, copy], [sent(100 * MB, synchronous=True)])
    least = step_time(program, POD, DEVICES, tiled=True)
    found = compiler_seconds(program, POD, least)
    assert found == pytest.approx(3 * 0.5 + 1 + least.exposed)


def test_there_is_no_time_of_the_compiler_without_a_clock_or_cycles():
    program = Program([Work(1e12, 0, 0, 1, cycles=1000)])
    least = step_time(program, POD, DEVICES)
    assert compiler_seconds(program, parse_topology("v6e:16x16"), least) is None
    silent = Program([dataclasses.replace(program.work[0], cycles=None)])
    assert compiler_seconds(silent, POD, least) is None
