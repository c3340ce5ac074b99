"""Which cluster a process finds itself in, from nothing but environment variables."""

import pytest
from jax._src import cloud_tpu_init
from jax._src.clusters import cloud_tpu_cluster, cluster

from clip_jax.config import DistributedConfig
from clip_jax.distributed import initialize
from clip_jax.distributed.initialize import Place, find_cluster, find_place

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
OPEN_MPI_4 = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
GKE = {"TPU_WORKER_HOSTNAMES": "a.svc,b.svc", "TPU_WORKER_ID": "1"}


@pytest.fixture
def surroundings(monkeypatch):
    """`surroundings({...}, tpu=True)` makes an environment that JAX's own detection sees too."""

    def make(variables: dict[str, str], *, tpu: bool = False) -> dict[str, str]:
        for name in {**SLURM, **OPEN_MPI_4, **GKE}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for module in (cloud_tpu_init, cloud_tpu_cluster, cluster):
            monkeypatch.setattr(module, "running_in_cloud_tpu_vm", tpu)
        return variables

    return make


def test_a_plain_machine_is_alone(surroundings):
    assert find_place(DistributedConfig(), surroundings({})) is None


def test_three_settings_are_enough_anywhere(surroundings):
    cfg = DistributedConfig(coordinator="a:1234", processes=4, process_index=3)
    assert find_place(cfg, surroundings(SLURM)) == Place("a:1234", 4, 3, None)


def test_a_part_of_the_settings_is_refused_where_no_cluster_tells_the_rest(surroundings):
    with pytest.raises(ValueError, match=r"belong together; given are .*'a:1234', None, 0"):
        find_place(DistributedConfig(coordinator="a:1234", process_index=0), surroundings({}))


def test_an_index_beyond_the_processes_is_refused(surroundings):
    cfg = DistributedConfig(coordinator="a:1234", processes=4, process_index=4)
    with pytest.raises(ValueError, match="process_index=4 must be from 0 to 3"):
        find_place(cfg, surroundings({}))


def test_one_process_of_one_is_alone(surroundings):
    cfg = DistributedConfig(coordinator="a:1234", processes=1, process_index=0)
    assert find_place(cfg, surroundings({})) is None
    assert find_place(DistributedConfig(), surroundings(SLURM | {"SLURM_NTASKS": "1"})) is None


def test_a_task_of_slurm_finds_the_first_node(surroundings):
    place = find_place(DistributedConfig(), surroundings(SLURM))
    assert place == Place("node07:61441", 4, 3, [1])  # the port is one of the job's


def test_a_batch_script_outside_of_srun_is_alone(surroundings):
    outside = {key: SLURM[key] for key in SLURM if key != "SLURM_STEP_NODELIST"}
    assert find_cluster(surroundings(outside)) is None


def test_a_task_that_slurm_has_bound_to_one_gpu_counts_it_as_its_first(surroundings):
    bound = surroundings(SLURM | {"CUDA_VISIBLE_DEVICES": "5"})
    assert find_place(DistributedConfig(), bound).local_device_ids == [0]
    all_seen = surroundings(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert find_place(DistributedConfig(), all_seen).local_device_ids == [1]


def test_open_mpi_4_tells_everything_and_5_all_but_the_coordinator(surroundings):
    place = find_place(DistributedConfig(), surroundings(OPEN_MPI_4))
    assert (place.coordinator.split(":")[0], place.processes, place.index) == ("10.96.0.1", 4, 2)
    with pytest.raises(ValueError, match=r"add --distributed\.coordinator HOST:PORT"):
        find_place(DistributedConfig(), surroundings(OPEN_MPI_5))
    told = DistributedConfig(coordinator="a:1234")
    assert find_place(told, surroundings(OPEN_MPI_5)) == Place("a:1234", 4, 2, [0])


def test_hosts_of_a_tpu_slice_on_gke_find_the_first(surroundings, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr("socket.gethostbyname", lambda name: "10.0.0.1")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "")
    assert find_cluster(surroundings(GKE)) is None  # no TPU is in this machine
    assert find_place(DistributedConfig(), surroundings(GKE, tpu=True)) == Place(
        "a.svc:8482", 2, 1, None
    )
    assert find_cluster(surroundings(GKE | {"JAX_PLATFORMS": "cpu"}, tpu=True)) is None


def test_a_tpu_vm_asks_the_metadata_server_unless_it_is_told_not_to(surroundings):
    assert find_cluster(surroundings({}, tpu=True)) == "a TPU VM"
    assert find_cluster(surroundings({"TPU_SKIP_MDS_QUERY": "1"}, tpu=True)) is None


def test_a_barrier_of_one_process_is_no_barrier():
    initialize.barrier("nobody else", 0.1)
