"""launch/gke.sh against a kubectl that notes every argument, and the manifest field by field."""

import re

import pytest
import yaml

IMAGE = "europe-docker.pkg.dev/p/r/clip-jax:1@sha256:ab"
TRAIN = ["train", "--config", 'configs/"a" \\b&.py', "--workdir", "gs://bucket/@NAME@"]
CREATE = [
    "create",
    "--name",
    "run1",
    "--type",
    "v5litepod",
    "--topology",
    "16x16",
    "--image",
    IMAGE,
]


@pytest.fixture
def gke(place):
    """`gke(*arguments)` runs the script and gives what kubectl was asked."""
    place.stand_in("kubectl")

    def run(*arguments: str, code: int = 0, stdin: str = "") -> list[list[str]]:
        found = place.launch("gke.sh", *arguments, stdin=stdin)
        assert found.returncode == code, found.stderr
        run.error, run.output = found.stderr, found.stdout
        return place.calls

    return run


@pytest.fixture
def manifest(gke):
    """`manifest(*options)`: the JobSet that create would make."""

    def make(*options: str) -> dict:
        gke(*CREATE, *options, "--dry-run", "--", *TRAIN)
        return yaml.safe_load(gke.output.replace("# | ", "# ").replace("kubectl", "# kubectl"))

    return make


def test_the_manifest_is_the_run_that_was_asked_for(manifest):
    found = manifest("--slices", "2", "--spot", "--restarts", "7")
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"]["name"] == "run1"
    (key,) = found["metadata"]["annotations"]
    assert key == "alpha.jobset.sigs.k8s.io/exclusive-topology"
    (replicated,) = found["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (64, 64, "Indexed")
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert container["command"] == ["clip-jax"] and container["args"] == TRAIN
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert 8482 in [port["containerPort"] for port in container["ports"]]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_exit_code_75_starts_all_again_and_a_mistake_ends_the_run(manifest):
    found = manifest("--restarts", "7")
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    # A pod failure policy needs pods that are never restarted in place.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    codes = rule["onExitCodes"]
    assert codes == {"containerName": "clip-jax", "operator": "In", "values": [1, 2, 130]}
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # So the JobSet's schema wants a rule to be called.
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


def test_machines_that_are_not_spot_have_no_such_label(manifest):
    pod = manifest()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


@pytest.mark.parametrize(
    ("type", "topology", "accelerator", "hosts", "chips"),
    [
        ("v5litepod", "1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5litepod", "2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v6e", "4x4", "tpu-v6e-slice", 4, 4),
        ("v4", "2x2x4", "tpu-v4-podslice", 4, 4),
        ("v5p", "4x8x8", "tpu-v5p-slice", 64, 4),
        ("tpu7x", "4x4x4", "tpu7x", 16, 4),
    ],
)
def test_a_topology_becomes_machines(manifest, type, topology, accelerator, hosts, chips):
    found = manifest("--type", type, "--topology", topology)
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def test_create_hands_the_manifest_to_kubectl_and_notes_it(gke, place):
    (call,) = gke(*CREATE, "--namespace", "team", "--", *TRAIN)
    assert call == ["kubectl", "--namespace", "team", "create", "-f", "-"]
    assert yaml.safe_load((place.folder / "stdin").read_text())["metadata"]["name"] == "run1"
    assert gke(*CREATE, "--", *TRAIN, code=2) == []
    assert "'run1' was created before" in gke.error
    jobset, pods = gke("status", "--name", "run1")
    assert jobset[:6] == ["kubectl", "--namespace", "team", "get", "jobset", "run1"]
    assert "jobset.sigs.k8s.io/jobset-name=run1" in pods
    (logs,) = gke("logs", "--name", "run1")
    assert logs[3:5] == ["logs", "--follow"]
    assert logs[-1].startswith("jobset.sigs.k8s.io/jobset-name=run1,")


def test_delete_wants_the_exact_name_that_create_noted(gke, place):
    gke(*CREATE, "--", *TRAIN)
    assert gke("delete", "--name", "run1", stdin="yes\n", code=2) == []
    assert gke("delete", "--name", "run2", "--confirm", "run2", code=2) == []
    assert gke("delete", "--name", "run1", "--dry-run") == []
    assert gke("delete", "--name", "run1", "--confirm", "run1") == [
        ["kubectl", "delete", "jobset", "run1"]
    ]
    assert list((place.folder / "notes").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--type", "h100"], "--type=h100 must be v4,"),
        (["--topology", "16by16"], "--topology=16by16 must be a topology"),
        (["--topology", "4x4x4"], "must have two sides for --type=v5litepod"),
        (["--type", "v4"], "must have three sides for --type=v4"),
        (["--topology", "3x3"], "is not made of machines of 4 chips"),
        (["--image", "a image"], "--image=a image must be"),
        (["--", "train", "--workdir", "runs/x"], "--workdir must be a bucket"),
        (["--"], "nothing to run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(change, expected, gke):
    arguments = change if "--" in change else [*change, "--", *TRAIN]
    assert gke(*CREATE, *arguments, code=2) == []
    assert expected in gke.error and len(gke.error.splitlines()) == 1
