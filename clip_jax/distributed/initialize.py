"""One job of several processes: detected on clusters, set by `distributed` elsewhere."""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

# JAX's own detection, which `jax.distributed.initialize` runs, and its key-value store are not
# public. The roll call needs to know the place of this process before JAX connects.
from jax._src import cloud_tpu_init, clusters
from jax._src import distributed as jax_distributed

from clip_jax.config import DistributedConfig
from clip_jax.distributed.lifeline import ANSWER_S, Lifeline, News
from clip_jax.distributed.rendezvous import ProcessesMissing, call_roll
from clip_jax.hardware import let_cpu_devices_wait

log = logging.getLogger(__name__)

BACKENDS_LATE_S = 60  # JAX's own time-out is later than ours, because it aborts without a name


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among the others."""

    coordinator: str  # host:port of process 0
    processes: int
    index: int
    local_device_ids: list[int] | None  # None: all devices of the machine that are visible


def initialize(
    cfg: DistributedConfig,
    description: Any,
    judge: Callable[[dict[int, Any]], str],
    *,
    on_news: News,
):
    """Join the other processes, if there are any. Before anything else asks JAX for devices.

    Args:
      cfg: where the others are, unless a cluster tells it.
      description: of this process, as JSON, for `judge`.
      judge: what is wrong with the descriptions of all processes together; "" where nothing is.
      on_news: called from a thread when another process fails or is gone.

    Raises:
      ValueError: when only a part of the settings is given, or the processes do not fit together.
      ProcessesMissing: when the others do not come.
    """
    if jax.distributed.is_initialized():
        return
    place = find_place(cfg, os.environ)
    if place is None:
        return
    _state.lifeline = line = call_roll(
        place.coordinator,
        place.processes,
        place.index,
        description=description,
        judge=judge,
        timeout_s=cfg.timeout_seconds,
    )
    line.watch(on_news)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    let_cpu_devices_wait(place.processes)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.index,
        place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=int(cfg.timeout_seconds) + BACKENDS_LATE_S,
    )
    line.catch_abort()
    line.say_alive, line.is_alive = _say_alive, _is_alive


def find_place(cfg: DistributedConfig, environment: Mapping[str, str]) -> Place | None:
    """Where this process stands, or None where it is alone."""
    given = (cfg.coordinator, cfg.processes, cfg.process_index)
    cluster = find_cluster(environment)
    if all(value is not None for value in given):
        coordinator, processes, index, devices = *given, None
    elif cluster is not None:
        coordinator, processes, index, devices = _ask(cluster, cfg, environment)
    elif any(value is not None for value in given):
        raise ValueError(
            "distributed.coordinator, distributed.processes and distributed.process_index belong "
            f"together; given are {given}, and no cluster was detected that gives the others"
        )
    else:
        return None
    if processes == 1:
        return None
    if not 0 <= index < processes:
        raise ValueError(
            f"distributed.process_index={index} must be from 0 to {processes - 1}, because "
            f"distributed.processes={processes}"
        )
    return Place(coordinator, processes, index, devices)


def find_cluster(environment: Mapping[str, str]) -> str | None:
    """The kind of cluster that this process runs in as one of several, or None."""
    # In a batch script outside of srun SLURM_NTASKS is set too, but there are no others yet.
    in_step = "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment
    if in_step and _number(environment, "SLURM_NTASKS") > 1:
        return "Slurm"
    if _number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    on_cpu = environment.get("JAX_PLATFORMS") == "cpu"
    if cloud_tpu_init.running_in_cloud_tpu_vm and not on_cpu:
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        if hosts is None:
            # A TPU VM asks its metadata server, which may answer that it is the only one.
            return None if "TPU_SKIP_MDS_QUERY" in environment else "a TPU VM"
        if "," in hosts or _number(environment, "MEGASCALE_NUM_SLICES") > 1:
            return "GKE"
    return None


def _ask(
    cluster: str, cfg: DistributedConfig, environment: Mapping[str, str]
) -> tuple[str, int, int, list[int] | None]:
    """What a cluster knows of this process. What the settings say comes first."""
    coordinator, processes, index = cfg.coordinator, cfg.processes, cfg.process_index
    if cluster == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in environment:
        if coordinator is None:
            raise ValueError(
                "Open MPI 5 does not tell its processes where process 0 runs: add "
                "--distributed.coordinator HOST:PORT"
            )
        processes = processes or _number(environment, "OMPI_COMM_WORLD_SIZE")
        index = _number(environment, "OMPI_COMM_WORLD_RANK") if index is None else index
        devices = [_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK")]
    else:
        try:
            coordinator, processes, index, devices = (
                clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    coordinator, processes, index, None, None, int(cfg.timeout_seconds)
                )
            )
        except RuntimeError as error:  # the name of process 0's machine is not known yet
            raise ProcessesMissing(f"{cluster} does not find process 0: {error}") from error
    if None in (coordinator, processes, index):
        raise ValueError(
            f"{cluster} does not tell enough of its processes: give --distributed.coordinator, "
            "--distributed.processes and --distributed.process-index"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if devices and visible and "," not in visible:
        devices = [0]  # Slurm has bound this task to its one GPU, which is number 0 in here
    return coordinator, processes, index, devices


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdigit() else 0


# --------------------------------------------------------------------------------- together


def several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax_distributed.global_state.num_processes > 1


def own_index() -> int:
    """Of this process. Unlike `jax.process_index` it wakes no device."""
    return jax_distributed.global_state.process_id


def barrier(name: str, timeout_s: float):
    """Go on once every process is here.

    Raises:
      ProcessesMissing: when some do not come in time; the message names them.
    """
    if not several():
        return
    client, count = store(), jax_distributed.global_state.num_processes
    client.key_value_set(f"clip_jax/at/{name}/{own_index()}", "", allow_overwrite=True)
    try:
        client.wait_at_barrier(f"clip_jax/{name}", int(timeout_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        came = {
            key.rpartition("/")[2] for key, _ in client.key_value_dir_get(f"clip_jax/at/{name}")
        }
        missing = [str(number) for number in range(count) if str(number) not in came]
        raise ProcessesMissing(
            f'process {", ".join(missing) or "?"} of {count} did not come to "{name}" within '
            f"{timeout_s:g} s: its log says why"
        ) from error


def exchange(name: str, own: Any, timeout_s: float) -> dict[int, Any]:
    """What each process says, as JSON, by its index; no device takes part, each may be anywhere.

    Raises:
      ProcessesMissing: when some do not come in time.
    """
    store().key_value_set(f"clip_jax/said/{name}/{own_index()}", json.dumps(own))
    barrier(f"all have said {name}", timeout_s)
    said = store().key_value_dir_get(f"clip_jax/said/{name}")
    return {int(key.rpartition("/")[2]): json.loads(text) for key, text in said}


@dataclasses.dataclass
class _State:
    lifeline: Lifeline | None = None


_state = _State()


def lifeline() -> Lifeline | None:
    """The connections with the other processes, or None in a process that is alone."""
    return _state.lifeline


def _say_alive():
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        store().key_value_set(f"clip_jax/alive/{own_index()}", "", allow_overwrite=True)


def _is_alive(index: int) -> bool:
    """Whether a process whose connection broke says that it lives."""
    try:
        store().blocking_key_value_get(f"clip_jax/alive/{index}", int(1000 * ANSWER_S))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def store() -> Any:
    """The key-value store that process 0 keeps for all."""
    return jax_distributed.global_state.client
