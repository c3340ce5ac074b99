"""launch/slurm.sbatch with stand-ins for srun and scontrol. slurm_cluster.sh tests it on a real Slurm."""

import re
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

TRAIN = ["train", "--workdir", "/shared/a b"]
SRUN = ["srun", "--label", "--kill-on-bad-exit=0", "--wait=60"]


@pytest.fixture
def job(place):
    """`job(code)`: what the batch script does when its tasks end with a code."""
    place.stand_in("clip-jax")
    place.stand_in("sleep")

    def run(code: int, **variables: str):
        place.stand_in("srun", ["", ["", code]])
        place.stand_in("scontrol")
        found = place.launch("slurm.sbatch", *TRAIN, SLURM_JOB_ID="41", **variables)
        return found.returncode, place.calls, found.stderr

    return run


def test_each_task_runs_what_was_asked_for(job):
    assert job(0) == (0, [[*SRUN, "clip-jax", *TRAIN]], "")


def test_options_and_the_program_come_from_variables(job, place):
    place.stand_in("other")
    options = {"SRUN_OPTIONS": "--exclusive --mem=0", "CLIP_JAX": "other"}
    assert job(0, **options)[1] == [[*SRUN, "--exclusive", "--mem=0", "other", *TRAIN]]


@pytest.mark.parametrize("code", [75, 134, 137])
def test_what_may_go_better_next_time_is_requeued(job, code):
    ended, calls, error = job(code)
    assert calls[1:] == [["scontrol", "requeue", "41"], ["sleep", "60"]]
    assert f"exit code {code}: requeueing, 1 of 100" in error
    assert ended == code


@pytest.mark.parametrize("code", [1, 2, 130])
def test_what_a_person_has_to_see_ends_the_job(job, code):
    ended, calls, _ = job(code)
    assert ended == code and len(calls) == 1


def test_requeueing_has_an_end(job):
    counts = {"SLURM_RESTART_COUNT": "3", "CLIP_JAX_RESTARTS": "3"}
    ended, calls, error = job(75, **counts)
    assert ended == 75 and len(calls) == 1 and "CLIP_JAX_RESTARTS allows more" in error


def test_a_dry_run_prints_the_step(place):
    place.stand_in("srun")
    found = place.launch("slurm.sbatch", "--dry-run", *TRAIN)
    assert (
        found.stdout == " ".join([*SRUN, "clip-jax", "train", "--workdir", r"/shared/a\ b"]) + " \n"
    )
    assert place.calls == []


def test_mistakes_are_one_line_and_exit_code_2(place):
    for arguments, variables, expected in (
        ([], {}, "nothing to run"),
        (["--nodes=2", "train"], {}, "unknown option --nodes=2"),
        (TRAIN, {"CLIP_JAX": "sh"}, "this runs under Slurm"),
        (TRAIN, {"CLIP_JAX": "nowhere", "SLURM_JOB_ID": "1"}, "nowhere is not installed"),
        (TRAIN, {"CLIP_JAX_RESTARTS": "many"}, "CLIP_JAX_RESTARTS=many must be a whole number"),
    ):
        found = place.launch("slurm.sbatch", *arguments, **variables)
        assert found.returncode == 2
        assert expected in found.stderr and len(found.stderr.splitlines()) == 1


def test_the_job_asks_for_what_preemption_needs():
    directives = re.findall(r"^#SBATCH (.+)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=TERM@180"} <= set(directives)
    # sbatch stops reading directives at the first line that is none of its and no comment.
    before = (LAUNCH / "slurm.sbatch").read_text().split("set -euo pipefail")[0]
    assert before.count("#SBATCH --") == len(directives)
