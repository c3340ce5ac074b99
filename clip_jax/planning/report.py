"""A plan in words and tables, for a terminal and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from clip_jax.planning.plan import Plan


def to_text(plan: Plan) -> str:
    """All of one plan."""
    m = plan.memory
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    per_device = plan.batch_size / plan.devices
    lines = [
        f"{plan.model} ({plan.parameters / 1e6:.1f} M parameters, {plan.dtype}, remat {plan.remat})"
        f" on {plan.topology}: {plan.chips} {plan.chip}"
        + (f", {plan.devices} JAX devices" if plan.devices != plan.chips else ""),
        f"  batch {plan.batch_size:,} ({per_device:g} a device), mesh {mesh}"
        + (f", accumulation {plan.accumulation}" if plan.accumulation > 1 else "")
        + f"; {plan.source}",
        "",
        f"  {'FITS' if plan.fits else 'DOES NOT FIT'}: peak {m.peak:.2f} of {m.available:.2f} GiB"
        f" a device (from shapes alone: {m.estimated_peak:.2f})",
        f"    parameters {m.parameters:.2f}, optimizer state {m.optimizer:.2f}, batch {m.batch:.2f},"
        f" activations and temporaries {m.activations:.2f}",
    ]
    if plan.largest_batch:
        best = plan.largest_batch
        lines.append(f"  largest batch found: {best.change}, peak {best.peak_gib:.2f} GiB")
    for tried in plan.suggestions:
        verdict = "fits" if tried.fits else "does not fit"
        lines.append(f"  tried {tried.change}: {verdict}, peak {tried.peak_gib:.2f} GiB")
    if not plan.fits and not plan.suggestions:
        lines.append(
            "  no change was tried that may make it fit: use more chips or a smaller batch"
        )
    lines += [f"  clip-jax train would refuse: {text}" for text in plan.refusals]
    lines += [f"  warning: {plan.warning}"] if plan.warning else []
    if plan.speed:
        lines += ["", *_speed_lines(plan)]
    if plan.kernels:
        runs = ", ".join(f"{count} x {name}" for name, count in plan.kernels)
        lines.append(f"    kernels a step: {runs}")
    if plan.exchanges:
        lines += ["", *_exchange_lines(plan)]
    return "\n".join(lines)


def _speed_lines(plan: Plan) -> list[str]:
    s = plan.speed
    return [
        f"  at best {s.step_s * 1e3:.1f} ms a step, bound by {s.bound}: compute"
        f" {s.compute_s * 1e3:.1f}, memory {s.memory_s * 1e3:.1f}, interconnect"
        f" {s.interconnect_s * 1e3:.1f} ms (hidden behind the others as far as it goes)",
        f"    {s.images_per_second:,.0f} images/s, {s.images_per_second_per_chip:,.0f} a chip,"
        f" MFU {s.mfu:.0%}",
        f"    model {s.model_tflop:.2f} TFLOP a chip and step, executed {s.executed_tflop:.2f},"
        f" {s.traffic_gb:,.0f} GB to and from memory",
        f"    {s.cores_per_host} cores a host to feed it ({plan.hosts} hosts)",
    ]


def _exchange_lines(plan: Plan) -> list[str]:
    lines = [f"  {'collective':20} {'axis':12} {'dtype':6} {'a step':>7} {'MB a device':>12}"]
    for row in plan.exchanges:
        axis = row.axis + (f" ({row.slices} slices)" if row.slices > 1 else "")
        lines.append(
            f"  {row.kind:20} {axis:12} {row.dtype:6} {row.count:7} {row.bytes / 1e6:12.2f}"
        )
    return lines


COLUMNS = (
    "topology", "model", "batch", "mesh", "remat", "peak GiB", "of", "fits", "largest batch",
    "ms a step", "bound by", "images/s", "a chip", "MFU", "cores a host",
)  # fmt: skip


def to_table(plans: Sequence[Plan]) -> str:
    """Several plans, one a row, as a table of Markdown."""
    rows = [COLUMNS, tuple("-" * len(name) for name in COLUMNS), *map(_row, plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in rows
    )


def _row(plan: Plan) -> tuple[str, ...]:
    m, s, best = plan.memory, plan.speed, plan.largest_batch
    speed = ("",) * 6
    if s:
        speed = (
            f"{s.step_s * 1e3:.0f}",
            s.bound,
            f"{s.images_per_second:,.0f}",
            f"{s.images_per_second_per_chip:,.0f}",
            f"{s.mfu:.0%}",
            str(s.cores_per_host),
        )
    return (
        plan.topology,
        plan.model,
        f"{plan.batch_size:,}",
        "x".join(map(str, plan.mesh.values())),
        plan.remat,
        f"{m.peak:.2f}",
        f"{m.available:.2f}",
        "yes" if plan.fits else "no",
        f"{int(best.change.split()[-1]):,}" if best else "",
        *speed,
    )


def write_json(plans: Sequence[Plan], path: Path):
    path.write_text(json.dumps([dataclasses.asdict(plan) for plan in plans], indent=2) + "\n")
