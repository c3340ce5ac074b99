"""What processes of one run compare before they start."""

import copy
import dataclasses

import pytest

from clip_jax.config import DataConfig, DistributedConfig, TrainConfig
from clip_jax.distributed.agreement import describe, differences


@pytest.fixture(scope="module")
def own() -> dict:
    return describe(TrainConfig())


def other(own: dict, **changes) -> dict:
    """A process on another machine, with some facts changed (or removed: None)."""
    found = copy.deepcopy(own) | {"host": "elsewhere"}
    for name, value in changes.items():
        found["facts"][name] = value
    return found


def test_processes_that_are_alike_have_no_differences(own):
    assert differences({0: own, 1: other(own)}) == ""


def test_what_belongs_to_one_machine_may_differ(own):
    cfg = TrainConfig(
        distributed=DistributedConfig(coordinator="a:1", processes=None, process_index=1),
        data=DataConfig(threads=3, data_dir="/local"),
    )
    assert differences({0: own, 1: describe(cfg)}) == ""


def test_another_setting_is_named_with_both_values(own):
    found = differences({0: own, 1: describe(dataclasses.replace(TrainConfig(), seed=4))})
    assert "process 1 on" in found
    assert "setting seed (4, where process 0 has 0)" in found


def test_another_version_is_named_before_the_files_that_differ_with_it(own):
    changed = {"file clip_jax/hardware.py": "0", "version of jax": "0.99.0"}
    found = differences({0: own, 1: other(own), 2: other(own, **changed)})
    assert "process 2 on elsewhere" in found and "process 1" not in found
    assert found.index("version of jax (0.99.0, where") < found.index(
        "file clip_jax/hardware.py (other"
    )


def test_a_file_that_only_one_has_is_named(own):
    facts = dict(own["facts"])
    del facts["file clip_jax/hardware.py"]
    less = {"host": "elsewhere", "facts": facts}
    assert "file clip_jax/hardware.py (it is missing)" in differences({0: own, 1: less})
    assert "file clip_jax/hardware.py (process 0 has none)" in differences({0: less, 1: own})


def test_a_thousand_differences_fit_into_a_message(own):
    facts = {f"file clip_jax/{number}.py": "0" for number in range(100)}
    found = differences({0: own, **{index: other(own, **facts) for index in range(1, 1000)}})
    assert len(found) < 3000
    assert "95 more" in found and "994 more processes differ" in found


def test_no_secret_is_sent_to_the_others(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--dump=https://me:word@host/")
    cfg = TrainConfig(data=DataConfig(source=("tar:https://me:word@host/a.tar",)))
    assert "word" not in str(describe(cfg))
