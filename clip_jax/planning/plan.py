"""A plan: whether a run fits a topology, how fast it goes at best, and what it has to be fed."""

import functools
import math
from collections import defaultdict
from dataclasses import dataclass

from jax.sharding import Mesh

from clip_jax.config import TrainConfig
from clip_jax.models.flops import parameter_count, training_flops
from clip_jax.planning import memory
from clip_jax.planning.backends import (
    JAX_SHARE,
    Trial,
    available_bytes,
    devices_of,
    is_compiled,
    target_of,
    try_step,
)
from clip_jax.planning.compiler import GIB
from clip_jax.planning.hlo.groups import axes_of, slices_in
from clip_jax.planning.hlo.module import Program
from clip_jax.planning.roofline import StepTime, compiler_seconds, step_time
from clip_jax.planning.search import by_speed, fitting_changes, settings_of, try_with_largest
from clip_jax.planning.steps import make_step, refusals, with_unroll
from clip_jax.planning.topologies import Topology
from clip_jax.training.state import FROZEN, replication_warning

# Images that one core decodes, crops and resizes in a second: 512 x 384 JPEGs to 224 pixels, exactly;
# measured by benchmarks/image_speed.py (benchmarks/RESULTS.md).
IMAGES_PER_CORE = 1043.0
ROOM_TO_SPARE = 0.9  # of the memory: what a proposal needs at most, for evaluation and fragments
NEARLY = 1.02  # times the fastest step: no reason to change what was asked for


@dataclass(frozen=True)
class MemoryGiB:
    """Of one JAX device."""

    parameters: float
    optimizer: float
    batch: float
    activations: float  # and all else that a step makes and drops
    peak: float
    available: float
    estimated_peak: float  # from shapes alone, without a compiler


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in a step, of one device."""

    kind: str
    axis: str  # of the mesh, or "data+fsdp"
    slices: int  # that it spans
    dtype: str
    count: int
    bytes: int
    synchronous: bool = False  # nothing else runs meanwhile


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one step; `step_s` and what follows from it are the bound with tiles."""

    model_tflop: float  # of a step, per chip, without what is computed twice
    executed_tflop: float
    padded_tflop: float  # that the matrix units work through
    traffic_gb: float  # between a chip and its memory
    tiled_gb: float  # the same in whole tiles
    compute_s: float
    memory_s: float
    exposed_s: float  # collectives while which nothing else runs
    hidden_s: float  # collectives beside the rest
    lower_s: float  # a step's least time: each operation at the maker's peaks
    step_s: float  # the same with arrays in whole tiles and matrix units filled up
    compiler_s: float | None  # by the compiler's own estimate of cycles; None: not known
    compiler_cycles: int  # 0: it estimates none
    bound: str
    images_per_second: float
    images_per_second_per_chip: float
    mfu: float
    cores_per_host: int  # to read and decode the images
    unpriced: tuple[str, ...] = ()  # kernels that state no operations, which are missing here
    host_images_per_second: float | None = None  # that storage gives; None: not measured


@dataclass(frozen=True)
class Attempt:
    """A change or a batch that was tried."""

    change: str
    fits: bool
    peak_gib: float
    step_s: float | None = None  # by the bound with tiles; None: not worked out


@dataclass(frozen=True)
class Plan:
    """Of one run on one topology."""

    topology: str
    chip: str
    chips: int
    devices: int
    hosts: int
    source: str  # of the figures: a compiler, or an estimate
    model: str
    parameters: int
    remat: str
    unroll: int
    dtype: str
    mesh: dict[str, int]
    batch_size: int
    accumulation: int
    fits: bool
    memory: MemoryGiB
    exchanges: tuple[Exchange, ...] = ()
    kernels: tuple[tuple[str, int], ...] = ()  # of a GPU's libraries and Triton, with runs a step
    speed: Speed | None = None  # None where it does not fit
    largest_batch: Attempt | None = None  # None: not searched, or none fits
    suggestions: tuple[Attempt, ...] = ()  # where it does not fit
    tried: tuple[Attempt, ...] = ()  # for speed, the fastest first
    proposal: Attempt | None = None  # the fastest that fits with room to spare
    refusals: tuple[str, ...] = ()  # what training would refuse, though a plan need not
    warning: str | None = None  # what "fsdp" leaves whole on each device, where that is much


def make_plan(
    cfg: TrainConfig,
    topology: Topology,
    *,
    search: bool = True,
    propose: bool = False,
    images_per_core: float = IMAGES_PER_CORE,
    images_per_host: float | None = None,
    gpu_share: float = JAX_SHARE,
) -> Plan:
    """Compile a run's step for a topology and work out the rest.

    Args:
      cfg: the run.
      topology: where it is to go.
      search: look for the largest batch, and for changes where the run does not fit.
      propose: look for the fastest rematerialisation and unrolling: six more are compiled at most.
      images_per_core: that a host's core makes ready in a second.
      images_per_host: that the storage gives a host in a second; None: not known.
      gpu_share: of a GPU's memory that JAX may use.

    Raises:
      ValueError: settings that contradict each other or the topology, or libtpu is missing.
    """

    cfg = with_unroll(cfg, target_of(topology, devices_of(topology)[0]))

    @functools.cache
    def trial_of(changed: TrainConfig, read: bool) -> Trial:
        return try_step(changed, topology, gpu_share=gpu_share, read=read)

    def fits(changed: TrainConfig) -> Trial:
        return trial_of(changed, changed == cfg or is_compiled(topology))

    largest, suggestions, tried = None, (), ()
    if search:
        step = make_step(cfg, devices_of(topology))
        available = available_bytes(topology, gpu_share=gpu_share)
        trial, found = try_with_largest(step, topology, fits, available=available)
        largest = found and _attempt(f"--data.batch-size {_batch(found)}", found)
        if not trial.fits:
            changes = fitting_changes(trial, topology, fits)
            suggestions = tuple(_attempt(name, each) for name, each in changes)
    else:
        trial = fits(cfg)
    if propose:
        found = by_speed(
            trial,
            lambda changed: trial_of(changed, True),
            lambda each: _time(each, topology).seconds,
            unroll=is_compiled(topology),
        )
        tried = tuple(_attempt(settings_of(each.step.cfg), each, s) for s, each in found)
    fitting = trial.fits and trial.program is not None
    return Plan(
        topology=topology.name,
        chip=topology.chip.label,
        chips=topology.chips,
        devices=topology.devices,
        hosts=topology.hosts,
        source=trial.source,
        model=trial.step.config.name,
        parameters=parameter_count(trial.step.config),
        remat=cfg.model.remat,
        unroll=cfg.model.unroll,
        dtype=cfg.model.dtype,
        mesh=dict(trial.step.mesh.shape),
        batch_size=cfg.data.batch_size,
        accumulation=cfg.data.accumulation,
        fits=trial.fits,
        memory=_memory(trial),
        exchanges=exchanges(trial.program, trial.step.mesh, topology) if fitting else (),
        kernels=tuple(trial.program.kernels.most_common()) if fitting else (),
        speed=_speed(trial, topology, images_per_core, images_per_host) if fitting else None,
        largest_batch=largest,
        suggestions=suggestions,
        tried=tried,
        proposal=_proposal(tried, settings_of(cfg), trial.available_bytes / GIB),
        refusals=refusals(cfg, trial.step.mesh),
        warning=replication_warning(trial.step.mesh, trial.step.state),
    )


def _proposal(tried: tuple[Attempt, ...], asked: str, available_gib: float) -> Attempt | None:
    """The fastest that leaves room; what was asked for where that is about as fast."""
    roomy = [each for each in tried if each.peak_gib <= ROOM_TO_SPARE * available_gib]
    if not roomy:
        return None
    same = (
        each for each in roomy if each.change == asked and each.step_s <= NEARLY * roomy[0].step_s
    )
    return next(same, roomy[0])


def _batch(trial: Trial) -> int:
    return trial.step.cfg.data.batch_size


def _attempt(change: str, trial: Trial, seconds: float | None = None) -> Attempt:
    return Attempt(change, trial.fits, trial.needed_bytes / GIB, seconds)


def _memory(trial: Trial) -> MemoryGiB:
    parts = memory.estimate(trial.step)
    fixed = parts.parameters + parts.optimizer + parts.batch
    return MemoryGiB(
        parameters=parts.parameters / GIB,
        optimizer=parts.optimizer / GIB,
        batch=parts.batch / GIB,
        activations=(trial.needed_bytes - fixed) / GIB,
        peak=trial.needed_bytes / GIB,
        available=trial.available_bytes / GIB,
        estimated_peak=trial.estimated_bytes / GIB,
    )


def exchanges(program: Program, mesh: Mesh, topology: Topology) -> tuple[Exchange, ...]:
    """A program's collectives, summed up by kind, axis and type."""
    sums: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    shape = tuple(mesh.shape.values())
    inside = topology.devices // topology.slices
    for each in program.collectives:
        if len(each.group) == 1:
            continue
        axis, slices = axes_of(each.group, shape), slices_in(each.group, inside)
        total = sums[each.kind, axis, slices, each.dtype, each.synchronous]
        total[0] += each.count
        total[1] += each.count * each.bytes
    rows = [Exchange(*key[:-1], *total, key[-1]) for key, total in sums.items()]
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def _time(trial: Trial, topology: Topology, *, tiled: bool = True) -> StepTime:
    devices = trial.step.mesh.devices.ravel().tolist()
    return step_time(trial.program, topology, devices, tiled=tiled)


def _speed(
    trial: Trial, topology: Topology, images_per_core: float, images_per_host: float | None
) -> Speed:
    cfg, program, chip = trial.step.cfg, trial.program, topology.chip
    time = _time(trial, topology)
    flops = training_flops(
        trial.step.config,
        frozen=FROZEN[cfg.model.freeze],
        unlocked_blocks=cfg.model.unlocked_blocks,
        heads=trial.step.model.heads,
    )
    model = flops * cfg.data.batch_size / topology.chips
    images = cfg.data.batch_size / time.seconds
    return Speed(
        model_tflop=model / 1e12,
        executed_tflop=program.flops * chip.devices / 1e12,
        padded_tflop=program.padded_flops(chip.matrix_unit) * chip.devices / 1e12,
        traffic_gb=program.bytes * chip.devices / 1e9,
        tiled_gb=program.tiled_bytes * chip.devices / 1e9,
        compute_s=time.compute,
        memory_s=time.memory,
        exposed_s=time.exposed,
        hidden_s=time.hidden,
        lower_s=_time(trial, topology, tiled=False).seconds,
        step_s=time.seconds,
        compiler_s=compiler_seconds(program, topology, time),
        compiler_cycles=program.cycles,
        bound=time.bound,
        images_per_second=images,
        images_per_second_per_chip=images / topology.chips,
        mfu=model / time.seconds / topology.chip.peak_flops,
        cores_per_host=math.ceil(images / topology.hosts / images_per_core),
        unpriced=tuple(program.unpriced),
        host_images_per_second=images_per_host,
    )
