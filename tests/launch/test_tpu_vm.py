"""launch/tpu_vm.sh against a gcloud that notes every argument; no TPU is asked for."""

import subprocess

import pytest

WHERE = ["--zone", "us-west4-a", "--project", "my-project"]
CREATE = ["create", "--name", "run1", *WHERE, "--type", "v5litepod-16"]
TRAIN = ["train", "--config", "configs/a b.py", "--workdir", "gs://bucket/run1"]
TPU_VM = ["gcloud", "compute", "tpus", "tpu-vm"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]


@pytest.fixture
def tpu(place):
    """`tpu(*arguments)` runs the script and gives what gcloud was asked."""
    place.stand_in("gcloud")

    def run(*arguments: str, code: int = 0, stdin: str = "") -> list[list[str]]:
        found = place.launch("tpu_vm.sh", *arguments, stdin=stdin)
        assert found.returncode == code, found.stderr
        run.error, run.output = found.stderr, found.stdout
        return place.calls

    return run


def test_create_asks_for_one_tpu_and_notes_it(tpu, place):
    (call,) = tpu(*CREATE)
    kind = ["--accelerator-type", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite"]
    assert call == [*TPU_VM, "create", "run1", *WHERE, *kind]
    assert "zone=us-west4-a" in (place.folder / "notes" / "run1.tpu").read_text()
    tpu(*CREATE, code=2)
    assert "'run1' was created before" in tpu.error


def test_a_queued_request_of_two_slices_names_its_nodes(tpu):
    (call,) = tpu(*CREATE, "--queued", "--spot", "--slices", "2")
    kind = ["--accelerator-type", "v5litepod-16", "--runtime-version", "v2-alpha-tpuv5-lite"]
    flags = ["--spot", "--node-count", "2", "--node-prefix", "run1"]
    assert call == [*QUEUED, "create", "run1", *WHERE, *kind, *flags]
    copies = [call for call in tpu("setup", "--name", "run1") if call[4] == "scp"]
    assert [call[6] for call in copies] == ["run1-0:clip_jax.tar.gz", "run1-1:clip_jax.tar.gz"]


def test_a_queued_request_of_one_slice_has_one_node(tpu):
    (call,) = tpu(*CREATE, "--queued")
    assert call[-2:] == ["--node-id", "run1"]


def test_setup_copies_the_code_to_all_hosts_and_installs_it(tpu):
    tpu(*CREATE)
    copy, install = tpu("setup", "--name", "run1")
    assert copy[:5] == [*TPU_VM, "scp"]
    assert copy[5].endswith("/clip_jax.tar.gz")
    assert copy[6:] == ["run1:clip_jax.tar.gz", *WHERE, "--worker=all"]
    assert install[:10] == [*TPU_VM, "ssh", "run1", *WHERE]
    assert install[10:12] == ["--worker=all", "--command"]
    assert '.venv/bin/pip install -q -e ".[tpu]" gcsfs' in install[12]


def test_run_starts_on_all_hosts_what_local_sh_restarts(tpu, place):
    tpu(*CREATE)
    (call,) = tpu("run", "--name", "run1", "--", *TRAIN)
    assert call[:12] == [*TPU_VM, "ssh", "run1", *WHERE, "--worker=all", "--command"]
    assert "nohup setsid" in call[12] and "launch/local.sh --restarts 1000 --" in call[12]
    # What arrives is what was given, also a name with a space in it.
    place.stand_in("nohup")
    (place.folder / "clip_jax").mkdir()
    there = ["bash", "-c", f"{call[12]}; wait"]
    subprocess.run(there, env=place.environment, cwd=place.folder, check=True)
    (started,) = place.calls
    assert started[-len(TRAIN) :] == TRAIN
    assert (place.folder / "clip_jax" / "pid").read_text().strip().isdigit()


def test_a_run_directory_on_one_host_is_refused(tpu):
    tpu(*CREATE)
    assert tpu("run", "--name", "run1", "--", "train", "--workdir", "runs/x", code=2) == []
    assert "--workdir must be a bucket" in tpu.error


def watched(place, states: list[str], codes: list[str], *more: str, answers: tuple = ()):
    place.stand_in("gcloud")
    for arguments in (CREATE, ["run", "--name", "run1", "--", *TRAIN]):
        assert place.launch("tpu_vm.sh", *arguments).returncode == 0
    place.stand_in(
        "gcloud",
        ["tpu-vm describe", *([f"{state}\n", int("ERROR" in state)] for state in states)],
        ["cat code", *([f"{code}\n", 0] for code in codes)],
        *answers,
    )
    assert place.calls
    found = place.launch("tpu_vm.sh", "watch", "--name", "run1", "--interval", "0", *more)
    verbs = [call[4] for call in place.calls if call[4] != "describe"]
    return found, verbs


def test_watch_ends_with_the_run(place):
    found, verbs = watched(place, ["READY"], ["runs", "runs", "0"])
    assert found.returncode == 0 and "complete" in found.stderr
    assert verbs == ["ssh"] * 3  # it only looked


def test_watch_makes_a_preempted_tpu_anew_and_starts_the_run_again(place):
    states = ["READY", "PREEMPTED", "CREATING", "READY"]
    found, verbs = watched(place, states, ["runs", "0"])
    assert found.returncode == 0, found.stderr
    assert "run1 is PREEMPTED: creating it again, 1 of 50" in found.stderr
    #                look   delete    create    copy   install start  look
    assert verbs == ["ssh", "delete", "create", "scp", "ssh", "ssh", "ssh"]


NO_NETWORK = "ERROR: (gcloud.compute.tpus) UNAVAILABLE: Connection reset by peer"
GONE = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource 'run1' was not found"


def test_watch_makes_nothing_anew_because_gcloud_cannot_be_asked(place):
    found, verbs = watched(place, [NO_NETWORK, NO_NETWORK, "READY"], ["0"])
    assert found.returncode == 0, found.stderr
    assert verbs == ["ssh"]
    assert found.stderr.count("Connection reset by peer") == 2


def test_watch_makes_anew_what_is_gone(place):
    found, verbs = watched(place, [GONE, "CREATING", NO_NETWORK, "READY"], ["0"])
    assert found.returncode == 0, found.stderr
    assert verbs == ["create", "scp", "ssh", "ssh", "ssh"]


def test_watch_tries_again_where_a_command_of_its_own_fails(place):
    states, failed = ["PREEMPTED", GONE, "READY"], (NO_NETWORK, 1)
    more = ["tpu-vm create", failed, ("", 0)], ["tpu-vm scp", failed, ("", 0)]
    found, verbs = watched(place, states, ["0"], answers=more)
    assert found.returncode == 0, found.stderr
    assert verbs == ["delete", "create", "create", "scp", "scp", "ssh", "ssh", "ssh"]


def test_watch_gives_up_after_so_many_times(place):
    found, verbs = watched(place, ["PREEMPTED"], ["runs"], "--recreate", "0")
    assert found.returncode == 75
    assert verbs == []


def test_watch_leaves_a_failed_run_to_a_person(place):
    found, verbs = watched(place, ["READY"], ["2"])
    assert found.returncode == 1 and "failed with exit code 2" in found.stderr
    assert verbs == ["ssh"]


def test_delete_wants_the_exact_name_that_create_noted(tpu, place):
    tpu(*CREATE)
    assert tpu("delete", "--name", "run1", stdin="run\n", code=2) == []
    assert tpu("delete", "--name", "run1", "--confirm", "run2", stdin="", code=2) == []
    assert tpu("delete", "--name", "run2", "--confirm", "run2", code=2) == []
    assert "create made no 'run2'" in tpu.error
    (call,) = tpu("delete", "--name", "run1", stdin="run1\n")
    assert call == [*TPU_VM, "delete", "run1", *WHERE, "--quiet"]
    assert not (place.folder / "notes" / "run1.tpu").exists()


def test_a_dry_run_asks_gcloud_nothing_and_notes_nothing(tpu, place):
    assert tpu(*CREATE, "--dry-run") == []
    assert tpu.output.startswith("gcloud compute tpus tpu-vm create run1 --zone us-west4-a")
    assert not (place.folder / "notes").exists()
    tpu(*CREATE)
    for verb in ("setup", "status", "delete"):
        assert tpu(verb, "--name", "run1", "--dry-run") == []
        assert "gcloud" in tpu.output
    assert tpu("run", "--name", "run1", "--dry-run", "--", *TRAIN) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--zone", "mars"], "--zone=mars must be a zone"),
        (["--type", "h100"], "--type=h100 must be a type"),
        (["--name", "Run_1"], "--name=Run_1 must be lower-case"),
        (["--name", "x; rm -r /"], "must be lower-case"),
        (["--slices", "0"], "--slices=0 must be a whole number"),
        (["--slices", "2"], "needs --queued"),
        (["--type", "tpu7x-8"], "the Cloud TPU API does not serve TPU7x; launch/gke.sh makes it"),
        (["--type", "v7e-8"], "--version is missing"),
        (["--zne", "x"], "unknown option --zne"),
        (["--version"], "--version needs a value"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(change, expected, tpu):
    assert tpu(*CREATE, *change, code=2) == []
    assert expected in tpu.error and len(tpu.error.splitlines()) == 1
