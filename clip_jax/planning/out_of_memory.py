"""What to change of a run whose step does not fit into a device's memory, by the plan's arithmetic."""

import dataclasses

import jax

from clip_jax.config import TrainConfig
from clip_jax.planning import memory
from clip_jax.planning.steps import make_step


def memory_advice(cfg: TrainConfig) -> str:
    """The memory that a step needs on a device, and what it would need with other settings."""
    parts = _memory(cfg)
    if parts is None:
        return "Lower --data.batch-size, or raise --data.accumulation"
    named = ", ".join(
        f"{field.name} {getattr(parts, field.name) / 2**30:.2f}"
        for field in dataclasses.fields(parts)
    )
    others = ((_memory(changed), flags) for changed, flags in _changes(cfg))
    less = [
        f"{flags} ({m.peak / 2**30:.2f} GiB)" for m, flags in others if m and m.peak < parts.peak
    ]
    advice = f"; with less: {', '.join(less)}" if less else ""
    return f"A step needs about {parts.peak / 2**30:.2f} GiB a device ({named}){advice}"


def _changes(cfg: TrainConfig):
    """The run with one setting changed, and how the change is written."""

    def change(group: str, flag: str, **values):
        changed = dataclasses.replace(getattr(cfg, group), **values)
        return dataclasses.replace(cfg, **{group: changed}), flag

    if cfg.model.remat != "full":
        yield change("model", "--model.remat full", remat="full")
    parts = 2 * cfg.data.accumulation
    yield change("data", f"--data.accumulation {parts}", accumulation=parts)
    if (devices := jax.device_count()) > cfg.mesh.fsdp:
        yield change("mesh", f"--mesh.fsdp {devices}", data=-1, fsdp=devices)
    half = cfg.data.batch_size // 2
    yield change("data", f"--data.batch-size {half}", batch_size=half)


def _memory(cfg: TrainConfig) -> memory.Memory | None:
    """None where the settings do not fit the devices."""
    try:
        return memory.estimate(make_step(cfg, jax.devices()))
    except ValueError:
        return None
