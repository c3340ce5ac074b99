"""A plan in words and tables, for a terminal and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from clip_jax import storage
from clip_jax.planning.plan import Plan


def to_text(plan: Plan) -> str:
    """All of one plan."""
    m = plan.memory
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    per_device = plan.batch_size / plan.devices
    lines = [
        f"{plan.model} ({plan.parameters / 1e6:.1f} M parameters, {plan.dtype}, remat {plan.remat}"
        + (f", unroll {plan.unroll}" if plan.unroll > 1 else "")
        + f") on {plan.topology}: {plan.chips} {plan.chip}"
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
    if plan.tried:
        lines += ["", *_proposal_lines(plan)]
    return "\n".join(lines)


def _speed_lines(plan: Plan) -> list[str]:
    s = plan.speed
    lines = [
        f"  at best {s.step_s * 1e3:.1f} ms a step, bound by {s.bound}: compute"
        f" {s.compute_s * 1e3:.1f}, memory {s.memory_s * 1e3:.1f}, collectives that nothing hides"
        f" {s.exposed_s * 1e3:.1f} ms (and {s.hidden_s * 1e3:.1f} hidden as far as they can be)",
        f"    {s.images_per_second:,.0f} images/s, {s.images_per_second_per_chip:,.0f} a chip,"
        f" MFU {s.mfu:.0%}",
        f"    without the padding of tiles and matrix units {s.lower_s * 1e3:.1f} ms;"
        f" by the compiler's own estimate {_compiler_text(plan)}",
        f"    model {s.model_tflop:.2f} TFLOP a chip and step, executed {s.executed_tflop:.2f}"
        + (f" ({s.padded_tflop:.2f} padded)" if s.padded_tflop > s.executed_tflop else "")
        + f", {s.traffic_gb:,.0f} GB to and from memory"
        + (f" ({s.tiled_gb:,.0f} in whole tiles)" if s.tiled_gb > s.traffic_gb else ""),
        f"    {s.cores_per_host} cores a host to feed it ({plan.hosts} hosts)",
    ]
    if s.host_images_per_second is not None:
        need = s.images_per_second / plan.hosts
        enough = need <= s.host_images_per_second
        lines.append(
            f"    a host takes {need:,.0f} images/s and its storage gives"
            f" {s.host_images_per_second:,.0f}"
            + ("" if enough else ": STORAGE LIMITS, data.cache_mb or more hosts help")
        )
    if s.unpriced:
        lines.append(
            f"    WITHOUT the operations of {len(s.unpriced)} kernels that state no cost_estimate:"
            f" {', '.join(s.unpriced[:3])}"
        )
    return lines


def _compiler_text(plan: Plan) -> str:
    s = plan.speed
    if s.compiler_s is not None:
        return f"{s.compiler_s * 1e3:.1f} ms"
    if s.compiler_cycles:
        return f"{s.compiler_cycles:,} cycles (the clock of {plan.chip} is unknown)"
    return "unknown"


def _proposal_lines(plan: Plan) -> list[str]:
    lines = ["  tried for speed, at best:"]
    for each in plan.tried:
        lines.append(
            f"    {each.change:42} {each.step_s * 1e3:8.1f} ms, peak {each.peak_gib:.2f} GiB"
        )
    if plan.proposal is None:
        return [*lines, "  no proposal: none of them leaves a tenth of the memory free"]
    asked = plan.proposal.change == f"--model.remat {plan.remat} --model.unroll {plan.unroll}"
    return [*lines, f"  proposal: {plan.proposal.change}" + (" (as it is)" if asked else "")]


def _exchange_lines(plan: Plan) -> list[str]:
    lines = [f"  {'collective':20} {'axis':12} {'dtype':6} {'a step':>7} {'MB a device':>12}  runs"]
    for row in plan.exchanges:
        axis = row.axis + (f" ({row.slices} slices)" if row.slices > 1 else "")
        lines.append(
            f"  {row.kind:20} {axis:12} {row.dtype:6} {row.count:7} {row.bytes / 1e6:12.2f}"
            f"  {'alone' if row.synchronous else 'beside others'}"
        )
    return lines


COLUMNS = (
    "topology", "model", "batch", "mesh", "remat", "peak GiB", "of", "fits", "largest batch",
    "ms a step", "lower bound", "compiler's ms", "bound by", "images/s", "a chip", "MFU",
    "cores a host",
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
    speed = ("",) * 8
    if s:
        speed = (
            f"{s.step_s * 1e3:.0f}",
            f"{s.lower_s * 1e3:.0f}",
            "unknown" if s.compiler_s is None else f"{s.compiler_s * 1e3:.0f}",
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
    found = [dataclasses.asdict(plan) for plan in plans]
    storage.atomic_write(path, json.dumps(found, indent=2) + "\n")
