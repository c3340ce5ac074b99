"""The command `clip-jax plan`: whether a run fits a pod or GPUs, and how fast a step is there."""

import dataclasses
import json
from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from clip_jax.cli.arguments import parse, take_config
from clip_jax.config import TrainConfig
from clip_jax.planning.backends import JAX_SHARE, start
from clip_jax.planning.plan import IMAGES_PER_CORE, make_plan
from clip_jax.planning.report import to_table, to_text, write_json
from clip_jax.planning.topologies import parse_topology
from clip_jax.registry import Part, Positive

PLAN_HELP = """
Compile a run's train step for chips that need not be here: memory, speed and traffic.

--config FILE and every setting of `clip-jax train` say what is planned, such as:
clip-jax plan --config configs/shapes_tiny.py --topology v5e:16x16 --topology v5p-1024
"""


@dataclass(frozen=True, kw_only=True)
class PlanSettings(TrainConfig):
    """A run, and where it is to go."""

    # v5e:16x16, v5litepod-256, v5p-1024, v5e:16x16*2 (two slices), h100:8, ...; may be given again
    topology: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    search: bool = True  # for the largest batch, and for changes where the run does not fit
    propose: bool = (
        True  # with the search: the fastest rematerialisation and unrolling, six compiles
    )
    images_per_core: Positive | None = (
        None  # that a host's core makes ready in a second; None: as measured, or 1043
    )
    data_bench: Path | None = None  # what `clip-jax data bench --json-out` wrote on such a host
    gpu_memory_share: Part = JAX_SHARE  # that JAX may use (XLA_PYTHON_CLIENT_MEM_FRACTION)
    json_out: Path | None = None  # a file that gets all of it


def plan(args: list[str]) -> int:
    """See on any machine whether a run fits a pod or GPUs, and how fast it goes there."""
    cfg, rest = take_config(args)
    default = PlanSettings(**{f.name: getattr(cfg, f.name) for f in fields(TrainConfig)})
    settings = parse(
        PlanSettings, rest, default=default, prog="clip-jax plan", description=PLAN_HELP
    )
    if not settings.topology:
        raise ValueError("say where it is to go: --topology v5e:16x16, v5p-1024, h100:8, ...")
    images_per_core, images_per_host = _data_rates(settings)
    topologies = [parse_topology(name) for name in settings.topology]
    cfg = TrainConfig(**{f.name: getattr(settings, f.name) for f in fields(TrainConfig)})
    start(topologies)
    plans = []
    for topology in topologies:
        made = make_plan(
            _sliced(cfg, topology.slices if topology.chip.kind == "tpu" else 1),
            topology,
            search=settings.search,
            propose=settings.search and settings.propose,
            images_per_core=images_per_core,
            images_per_host=images_per_host,
            gpu_share=settings.gpu_memory_share,
        )
        plans.append(made)
        print(to_text(made) + "\n", flush=True)
    if len(plans) > 1:
        print(to_table(plans))
    if settings.json_out is not None:
        write_json(plans, settings.json_out)
    return 0


def _data_rates(settings: PlanSettings) -> tuple[float, float | None]:
    """Images a second of a core and, where that was measured, of a host's storage."""
    per_core, per_host, path = settings.images_per_core, None, settings.data_bench
    if path is not None:
        if not path.is_file():
            raise ValueError(f"data_bench={path} is no file; `clip-jax data bench --json-out` writes one")  # fmt: skip
        try:
            found = json.loads(path.read_text())
            measured, per_host = float(found["images_per_core"]), found["images_per_host"]
            per_host = None if per_host is None else float(per_host)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"data_bench={path} is not of `clip-jax data bench`: {error!r}") from error  # fmt: skip
        if not measured > 0 or (per_host is not None and not per_host > 0):
            raise ValueError(f"data_bench={path}: its rates must be above 0")
        per_core = per_core or measured
    return per_core or IMAGES_PER_CORE, per_host


def _sliced(cfg: TrainConfig, slices: int) -> TrainConfig:
    """The run with its mesh over the topology's slices, where it says nothing else."""
    if cfg.mesh.slices not in (1, slices):
        raise ValueError(
            f"mesh.slices={cfg.mesh.slices} and a --topology of {slices} slices: leave mesh.slices "
            "at 1, and the topology decides"
        )
    return dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, slices=slices))
