"""Finds the largest batch that fits, and changes that make a step fit. Every answer is compiled."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from clip_jax.config import TrainConfig
from clip_jax.models.clip import deepest
from clip_jax.planning.backends import Trial, devices_of, estimated_bytes
from clip_jax.planning.steps import Step, make_step
from clip_jax.planning.topologies import Topology

TrialOf = Callable[[TrainConfig], Trial]
MOST_TRIES = 2  # of the search for a batch, after its first guess
MOST_OF_A_KIND = 2  # changes that are compiled when a step does not fit
ROOM_AT_FIRST, ROOM = 0.95, 0.98  # of the memory that a guess is aimed at
REMATS = ("none", "dots", "attention", "full")  # from nothing computed again to all of it
SOME_UNROLLED = 4  # blocks in one turn of the loop, between one and all of them
NEAR = 0.86  # of the memory: a batch that needs as much is called the largest
MOST_PAIRS = 2**20  # in a batch: nobody trains with more


def with_batch(cfg: TrainConfig, batch_size: int) -> TrainConfig:
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, batch_size=batch_size))


def try_with_largest(
    step: Step, topology: Topology, trial_of: TrialOf, *, available: float
) -> tuple[Trial, Trial | None]:
    """The trial of a step, and that of the largest batch that fits; None where not even one does.

    A refusal takes two seconds and an acceptance up to a minute of one core, so the estimate's
    guess is compiled beside the step itself, and the search ends near the limit. Between and
    beyond the verdicts of the compiler the estimate goes on, moved to meet them.
    """
    cfg = step.cfg
    unit = step.mesh.size * cfg.data.accumulation
    asked = cfg.data.batch_size // unit
    most = max(MOST_PAIRS // unit, asked)
    estimate = functools.cache(lambda rows: estimated_bytes(step, topology, batch_size=rows * unit))
    guess = _guess(0, most + 1, estimate, {}, ROOM_AT_FIRST * available)
    with ThreadPoolExecutor(2) as pool:
        wanted = {asked, guess} - {0}
        waiting = {rows: pool.submit(trial_of, with_batch(cfg, rows * unit)) for rows in wanted}
        known = {rows: future.result() for rows, future in waiting.items()}
    for _ in range(MOST_TRIES):
        low = max((rows for rows, trial in known.items() if trial.fits), default=0)
        high = min((rows for rows, trial in known.items() if not trial.fits), default=most + 1)
        if low and known[low].needed_bytes >= NEAR * available:
            break
        verdicts = {estimate(rows): trial.needed_bytes for rows, trial in known.items()}
        guess = _guess(low, high, estimate, verdicts, ROOM * available)
        if guess <= low:
            break
        known[guess] = trial_of(with_batch(cfg, guess * unit))
    fitting = [rows for rows, trial in known.items() if trial.fits]
    return known[asked], known[max(fitting)] if fitting else None


def _guess(
    low: int,
    high: int,
    estimate: Callable[[int], float],
    verdicts: dict[float, float],
    room: float,
) -> int:
    """The most rows a device, from `low` to below `high`, for which there seems to be room.

    `verdicts` are what was needed by what was estimated: one moves the estimate, and two, those
    nearest to the room that there is, stretch it too.
    """
    by_nearness = sorted(verdicts, key=lambda at: abs(verdicts[at] - room))

    def needed(rows: int) -> float:
        if not by_nearness:
            return estimate(rows)
        at, *others = by_nearness
        slope = 1.0
        if others and others[0] != at:
            slope = (verdicts[at] - verdicts[others[0]]) / (at - others[0])
        return verdicts[at] + max(slope, 0.1) * (estimate(rows) - at)

    high -= 1
    while low < high:
        middle = (low + high + 1) // 2
        if needed(middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low // 8 * 8 if low >= 8 else low  # a chip's units work on 8 rows at a time


def fitting_changes(first: Trial, topology: Topology, trial_of: TrialOf) -> list[tuple[str, Trial]]:
    """Changes of a step that does not fit, compiled: of each kind the cheapest that seems to help.

    All of them together are tried only when no single one is enough.
    """
    # The estimate is taken to be as wrong as it is of the step itself.
    scale = first.needed_bytes / first.estimated_bytes if first.estimated_bytes else 1.0
    tried: list[tuple[str, Trial]] = []
    for kind in KINDS:
        if kind is _together and any(trial.fits for _, trial in tried):
            break
        compiled = 0
        for name, cfg in kind(first.step.cfg, topology):
            try:
                step = make_step(cfg, devices_of(topology))
            except ValueError:  # such as a split that no width allows
                continue
            if scale * estimated_bytes(step, topology) > first.available_bytes:
                continue
            tried.append((name, trial_of(cfg)))
            compiled += 1
            if tried[-1][1].fits or compiled == MOST_OF_A_KIND:
                break
    return tried


def by_speed(
    first: Trial, trial_of: TrialOf, seconds_of: Callable[[Trial], float], *, unroll: bool = True
) -> list[tuple[float, Trial]]:
    """Steps with each rematerialisation, and with blocks unrolled of the fastest: fastest first.

    At most six are compiled, the step itself among them. Those that do not fit are dropped.

    Args:
      first: the step as it was asked for.
      trial_of: compiles a step.
      seconds_of: of a trial that fits.
      unroll: try to; an estimate sees no difference in it.
    """

    def try_all(changes: Sequence[TrainConfig]) -> list[tuple[float, Trial]]:
        with ThreadPoolExecutor(2) as pool:
            trials = list(pool.map(trial_of, changes))
        return [(seconds_of(each), each) for each in trials if each.fits and each.program]

    cfg = first.step.cfg
    found = try_all([_remat(cfg, remat) for remat in REMATS])
    if not found or not unroll:
        return sorted(found, key=_seconds)
    fastest = min(found, key=_seconds)[1].step.cfg
    depth = deepest(first.step.config)
    unrolls = {1, min(SOME_UNROLLED, depth), depth} - {cfg.model.unroll}
    found += try_all([_unroll(fastest, blocks) for blocks in sorted(unrolls)[-2:]])
    return sorted(found, key=_seconds)


def _seconds(found: tuple[float, Trial]) -> float:
    return found[0]


def settings_of(cfg: TrainConfig) -> str:
    """What `by_speed` changes, as it is given to a command."""
    return f"--model.remat {cfg.model.remat} --model.unroll {cfg.model.unroll}"


Changes = Iterator[tuple[str, TrainConfig]]


def _rematerialised(cfg: TrainConfig, topology: Topology) -> Changes:
    for remat in REMATS[REMATS.index(cfg.model.remat) + 1 :]:
        yield f"--model.remat {remat}", _remat(cfg, remat)


def _split(cfg: TrainConfig, topology: Topology) -> Changes:
    for fsdp in _splits(cfg, topology):
        yield f"--mesh.fsdp {fsdp}", _fsdp(cfg, fsdp)


def _accumulated(cfg: TrainConfig, topology: Topology) -> Changes:
    for parts in (2, 4, 8, 16):
        if parts > cfg.data.accumulation:
            yield f"--data.accumulation {parts}", _accumulate(cfg, parts)


def _together(cfg: TrainConfig, topology: Topology) -> Changes:
    strongest = _remat(cfg, "full")
    for fsdp in [*_splits(cfg, topology), cfg.mesh.fsdp]:
        yield f"--model.remat full --mesh.fsdp {fsdp}", _fsdp(strongest, fsdp)
    most = max([*_splits(cfg, topology), cfg.mesh.fsdp])
    for name, changed in _accumulated(_fsdp(strongest, most), topology):
        yield f"--model.remat full --mesh.fsdp {most} {name}", changed


KINDS = (_rematerialised, _split, _accumulated, _together)


def _splits(cfg: TrainConfig, topology: Topology) -> list[int]:
    """Larger sizes of "fsdp" that divide a slice's devices."""
    inside = topology.devices // topology.slices
    return [n for n in (2, 4, 8, 16, 32, 64, 128, 256) if cfg.mesh.fsdp < n and inside % n == 0]


def _remat(cfg: TrainConfig, remat: str) -> TrainConfig:
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, remat=remat))


def _unroll(cfg: TrainConfig, blocks: int) -> TrainConfig:
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, unroll=blocks))


def _fsdp(cfg: TrainConfig, fsdp: int) -> TrainConfig:
    return dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, fsdp=fsdp, data=-1))


def _accumulate(cfg: TrainConfig, parts: int) -> TrainConfig:
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, accumulation=parts))
