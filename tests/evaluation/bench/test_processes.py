"""Two processes find what one finds, and one whose data differ stops no other task."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import stand_ins

from clip_jax.evaluation.bench.tasks import read_suite

PROCESS = Path(__file__).parent / "bench_process.py"
TASKS = {task.name: task for task in read_suite("datacomp38").tasks}


def start(folder: Path, rank: int, processes: int, root: Path, address: str) -> subprocess.Popen:
    devices = 4 // processes
    # The emitters as in tests/conftest.py.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false"
    paths = [str(PROCESS.parents[3]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)}
    arguments = (folder / f"{rank}.json", root, folder / f"out{rank}", address, processes, rank)
    command = [sys.executable, str(PROCESS), *map(str, arguments)]
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def results(folder: Path, roots: list[Path]) -> list[dict]:
    """What each process found."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start(folder, rank, len(roots), root, address) for rank, root in enumerate(roots)]
    try:
        for rank, process in enumerate(processes):
            assert process.wait(300) == 0, (folder / f"{rank}.log").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(roots))]


def test_two_processes_find_what_one_finds_and_agree_on_what_fails(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    stand_ins.tar_task(root, TASKS["mnist"], "wds_mnist", 0, labels=range(10), each=2)
    stand_ins.tar_task(root, TASKS["country211"], "wds_country211", 50)
    stand_ins.tar_task(root, TASKS["wilds/fmow"], "wds_wilds-fmow_test", 70,
                       metadata=stand_ins.METADATA["wilds/fmow"])  # fmt: skip
    stand_ins.winogavil(root, 100)
    shutil.copytree(root, other)
    # The second process has other data of one task and none of another.
    samples = stand_ins.labelled(TASKS["country211"], 60, each=3)
    stand_ins.write_tar(other / "wds_country211" / "test" / "0.tar", samples)
    shutil.rmtree(other / "wds_wilds-fmow_test")
    (one,) = results(tmp_path / "one", [root])
    first, second = results(tmp_path / "two", [root, other])
    assert first == second
    assert len(first["failed"]) == 2 and "have other data of country211" in first["failed"][0]
    for task in ("mnist", "misc/winogavil"):
        assert first["values"][task] == pytest.approx(one["values"][task], abs=1e-5)
    assert set(one["values"]) == set(first["values"]) | {"country211", "wilds/fmow"}
