"""A bench as one of several processes: RESULTS ROOT OUT ADDRESS PROCESSES RANK."""

import json
import sys

import jax
from conftest import make_loaded

from clip_jax import sharding
from clip_jax.config import DataConfig, EvaluationConfig, MeshConfig
from clip_jax.evaluation.bench.run import BenchConfig, run
from clip_jax.evaluation.bench.tasks import Suite, catalogue, read_suite

NAMES = ("mnist", "misc/winogavil", "country211", "wilds/fmow")


def main(results: str, root: str, out: str, address: str, processes: str, rank: str):
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(rank))
    assert set(NAMES) <= catalogue().keys()
    tasks = tuple(task for task in read_suite("datacomp38").tasks if task.name in NAMES)
    config = BenchConfig(
        roots=(root,),
        out=out,  # of this process alone: what process 0 keeps is sent to the others
        cfg=EvaluationConfig(batch_size=16),
        data=DataConfig(data_dir=f"{out}/data", threads=1),
        save_every=16,
    )
    suite, mesh = (
        Suite(name="four", tasks=tasks, averages={}),
        sharding.make_mesh(MeshConfig(fsdp=2)),
    )
    for _ in range(2):  # once measured, once from the cache
        report = run({"tiny": make_loaded}, suite, mesh, config)
    values = {task: found["metrics"] for (_, task), found in report.results.items()}
    told = {
        "values": values,
        "failed": list(report.failed.values()),
        "missing": list(report.missing),
    }
    with open(results, "w") as file:
        json.dump(told, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
