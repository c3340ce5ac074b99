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


POOL = [
    *("create-pool", "--name", "pool1", "--cluster", "team", "--region", "us-central1"),
    *("--zone", "us-central1-a", "--project", "p1"),
]
WHERE = ["--region", "us-central1", "--project", "p1"]


@pytest.fixture
def pools(gke, place):
    """`pools(*options)`: what gcloud is asked to make, and then to delete."""
    place.stand_in("gcloud")

    def make(*options: str) -> tuple[list[list[str]], list[list[str]]]:
        made = gke(*POOL, *options)
        return made, gke("delete-pool", "--name", "pool1", "--confirm", "pool1")

    return make


def test_a_tpu7x_slice_is_a_node_pool_with_a_workload_policy(pools):
    made, deleted = pools("--type", "tpu7x", "--topology", "4x4x4", "--slices", "2", "--spot")
    assert made[0] == [
        *("gcloud", "compute", "resource-policies", "create", "workload-policy", "pool1"),
        *("--type", "HIGH_THROUGHPUT", "--accelerator-topology", "4x4x4", *WHERE),
    ]
    assert made[1:] == [
        [
            *("gcloud", "container", "node-pools", "create", name, "--cluster", "team", *WHERE),
            *("--node-locations", "us-central1-a", "--machine-type", "tpu7x-standard-4t"),
            *("--num-nodes", "16", "--placement-policy", "pool1", "--spot"),
        ]
        for name in ("pool1-0", "pool1-1")
    ]
    delete = ["gcloud", "container", "node-pools", "delete"]
    assert deleted == [
        *([*delete, f"pool1-{i}", "--cluster", "team", *WHERE, "--quiet"] for i in range(2)),
        ["gcloud", "compute", "resource-policies", "delete", "pool1", "--quiet", *WHERE],
    ]


@pytest.mark.parametrize(
    ("type", "topology", "shape"),
    [
        ("tpu7x", "2x2x1", ["--machine-type", "tpu7x-standard-4t", "--num-nodes", "1"]),
        ("v6e", "2x4", ["--machine-type", "ct6e-standard-8t", "--num-nodes", "1"]),
        (
            "v5litepod",
            "16x16",
            ["--machine-type", "ct5lp-hightpu-4t", "--num-nodes", "64", "--tpu-topology", "16x16"],
        ),
        (
            "v5p",
            "2x2x2",
            ["--machine-type", "ct5p-hightpu-4t", "--num-nodes", "2", "--tpu-topology", "2x2x2"],
        ),
    ],
)
def test_other_node_pools_need_no_policy(pools, type, topology, shape):
    (made,), (deleted,) = pools("--type", type, "--topology", topology)
    assert made[made.index("--machine-type") :] == shape
    assert deleted[1:4] == ["container", "node-pools", "delete"]


def test_a_pool_that_was_not_made_here_is_not_deleted(gke, place):
    place.stand_in("gcloud")
    assert gke("delete-pool", "--name", "pool1", "--confirm", "pool1", code=2) == []
    assert "create-pool made no 'pool1'" in gke.error
    gke(*POOL, "--type", "tpu7x", "--topology", "2x2x1")
    assert gke("delete-pool", "--name", "pool1", stdin="yes\n", code=2) == []


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
