"""Chips are found by the names that JAX gives their devices, and their figures are sound."""

import itertools
import os

import pytest

from clip_jax.hardware import CHIPS, chip_of, let_cpu_devices_wait, silence_absent_tpus


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v3", "v3"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_a_chip_is_found_by_the_kind_of_its_device(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "TPU v4 lite"])
def test_a_device_of_other_figures_is_not_taken_for_one_that_is_known(kind):
    assert chip_of(kind) is None


def test_half_a_chip_has_half_of_its_peak():
    assert CHIPS["tpu7x"].device_flops == pytest.approx(2307e12 / 2)
    assert CHIPS["h200"].device_flops == pytest.approx(989e12)


def test_every_maker_s_chips_get_faster_with_their_generation():
    for names in (("v3", "v4", "v5p", "tpu7x"), ("v5e", "v6e"), ("a100", "h100", "b200")):
        for older, newer in itertools.pairwise(names):
            assert CHIPS[older].tflops < CHIPS[newer].tflops
            assert CHIPS[older].memory_gbps < CHIPS[newer].memory_gbps


def test_libtpu_is_silenced_only_where_there_is_no_tpu(monkeypatch):
    names = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")
    for name in names:
        monkeypatch.setenv(name, "restored after the test")
        monkeypatch.delenv(name)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    silence_absent_tpus()
    assert not any(name in os.environ for name in names)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    silence_absent_tpus()
    assert all(name in os.environ for name in names)


def test_every_chip_says_how_fast_machines_are_joined():
    assert all(0 < chip.network_gbps < chip.link_gbps for chip in CHIPS.values())


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8 --b"}, "512"),
        ({"JAX_NUM_CPU_DEVICES": "4"}, "256"),
        ({"JAX_NUM_CPU_DEVICES": "4", "NPROC": "5"}, "5"),
    ],
)
def test_several_cpu_devices_get_threads_to_wait_in(variables, threads, monkeypatch):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    let_cpu_devices_wait()
    assert os.environ.get("NPROC") == threads


@pytest.mark.parametrize(("platform", "threads"), [("cpu", "128"), ("tpu", None)])
def test_so_do_several_processes_on_cpus(platform, threads, monkeypatch):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    let_cpu_devices_wait(processes=2)
    assert os.environ.get("NPROC") == threads
