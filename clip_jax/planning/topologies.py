"""Names of pods and GPU machines, as their makers write them, and the devices behind them."""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any

from clip_jax.hardware import CHIPS, Chip

ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "h100-80gb": "h100",
           "h200-141gb": "h200", "a100-80gb": "a100"}  # fmt: skip
# Google counts cores, two a chip, in the names of these; chips in those of the others.
COUNTS_CORES = ("v3", "v4", "v5p", "tpu7x")
TORUS_2D = ("v3", "v5e", "v6e")
LARGEST = {
    "v3": 1024,
    "v4": 4096,
    "v5e": 256,
    "v5p": 8960,
    "v6e": 256,
    "tpu7x": 9216,
}  # chips of a pod
PLANES = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
          256: (16, 16), 512: (16, 32), 1024: (32, 32)}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """A number of equal slices of chips; a GPU machine is a slice too."""

    name: str
    chip: Chip
    shape: tuple[int, ...]  # chips along each axis of a slice
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """That JAX shows."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        return math.ceil(self.chips / self.chip.host_chips)

    @property
    def wrap(self) -> tuple[tuple[int, bool], ...]:
        """Each axis's length and whether its last chip is joined to its first."""
        if self.chip.name in TORUS_2D:
            return tuple((n, n >= 16) for n in self.shape)
        cube = all(n % 4 == 0 for n in self.shape)
        return tuple((n, cube) for n in self.shape)

    def compile_only_devices(self) -> list[Any]:
        """Devices that the TPU compiler accepts, on a machine that has none."""
        from jax.experimental import topologies  # loads libtpu when it is called

        # An axis that wraps changes the collectives' routes, so it has to be said.
        wraps = [wraps for _, wraps in self.wrap] + [False] * (3 - len(self.shape))
        options = {"wrap": tuple(wraps), "chips_per_host_bounds": self._host_bounds}
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # one device a chip, as on the machines
        if self.slices > 1:
            options["num_slices"] = self.slices
        shape = "x".join(map(str, self.shape))
        try:
            devices = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.chip.name}:{shape}", **options
            ).devices
        except RuntimeError as error:
            raise ValueError(
                f"--topology {self.name}: libtpu knows no such slice ({first_line(error)}): give a shape "
                "that Google offers"
            ) from error
        assert len(devices) == self.devices, (self.name, len(devices))
        return devices

    @property
    def _host_bounds(self) -> tuple[int, int, int]:
        return (2, 2, 1) if math.prod(self.shape) >= 4 else (1, 1, 1)


def first_line(error: Exception) -> str:
    """What a compiler says first, which goes on with a page of its insides; it may say nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def parse_topology(name: str) -> Topology:
    """Read "v5e:16x16", "v5litepod-256", "v5p-1024", "v5e:16x16*2" (two slices) or "h100:8".

    Raises:
      ValueError: no such chip, shape or size, with what there is.
    """
    match = re.fullmatch(r"([a-z0-9-]+?)(?:[:-](\d+(?:x\d+)*))(?:\*(\d+))?", name.strip().lower())
    if not match:
        raise ValueError(
            f"--topology {name}: write a chip and a shape, such as v5e:16x16, v5litepod-256, "
            "v5p-1024, v5e:16x16*2 (two slices) or h100:8"
        )
    kind, size, slices = match.group(1), match.group(2), int(match.group(3) or 1)
    kind = ALIASES.get(kind, kind)
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, [*CHIPS, *ALIASES], n=2, cutoff=0.5)
        raise ValueError(
            f"--topology {name}: there is no chip {kind!r}; "
            f"{'nearest: ' + ', '.join(near) if near else 'known: ' + ', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    if slices < 1:
        raise ValueError(f"--topology {name}: there must be at least one slice")
    if chip.kind == "gpu":
        return _gpus(name, chip, size, slices)
    shape = tuple(map(int, size.split("x"))) if "x" in size else _shape(name, chip, int(size))
    _check_shape(name, chip, shape)
    return Topology(name, chip, shape, slices)


def _gpus(name: str, chip: Chip, size: str, slices: int) -> Topology:
    count = 0 if "x" in size else int(size)
    if count < 1 or slices != 1:
        raise ValueError(f"--topology {name}: write the number of GPUs, such as {chip.name}:8")
    if count > chip.host_chips and count % chip.host_chips:
        raise ValueError(
            f"--topology {name}: more than {chip.host_chips} GPUs come in machines of "
            f"{chip.host_chips}"
        )
    per_node = min(count, chip.host_chips)
    return Topology(name, chip, (per_node,), count // per_node)


def _shape(name: str, chip: Chip, count: int) -> tuple[int, ...]:
    """The shape that Google gives to a slice of so many chips or cores."""
    if chip.name in COUNTS_CORES:
        if count % 2:
            raise ValueError(f"--topology {name}: {chip.name} counts cores, two a chip")
        count //= 2
    if chip.name in TORUS_2D:
        if count not in PLANES:
            raise ValueError(f"--topology {name}: {chip.name} has {', '.join(map(str, PLANES))}")
        return PLANES[count]
    small = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
    if count in small:
        return small[count]
    boxes = [
        (a, b, count // (a * b))
        for a in range(4, count + 1, 4)
        for b in range(a, count // a + 1, 4)
        if count % (a * b) == 0 and count // (a * b) >= b and count // (a * b) % 4 == 0
    ]
    if not boxes:
        raise ValueError(
            f"--topology {name}: {count} chips make no box of 4x4x4 cubes; give a shape, such as "
            f"{chip.name}:4x4x8"
        )
    return min(boxes, key=max)


def _check_shape(name: str, chip: Chip, shape: tuple[int, ...]):
    axes = 2 if chip.name in TORUS_2D else 3
    if len(shape) != axes:
        raise ValueError(f"--topology {name}: {chip.name} has {axes} axes, {len(shape)} are given")
    if axes == 2 and shape not in PLANES.values():
        known = ", ".join("x".join(map(str, plane)) for plane in PLANES.values())
        raise ValueError(f"--topology {name}: {chip.name} comes as {known}")
    if axes == 3 and any(n not in (1, 2) and (n < 1 or n % 4) for n in shape):
        raise ValueError(f"--topology {name}: axes of {chip.name} are 1, 2 or multiples of 4")
    if math.prod(shape) > LARGEST[chip.name]:
        raise ValueError(f"--topology {name}: a {chip.name} pod has {LARGEST[chip.name]} chips")
