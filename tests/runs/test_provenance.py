"""Settings as JSON, what may change when a run goes on, and secrets."""

import dataclasses
import json

import jax
import pytest

from clip_jax.config import (
    CheckpointConfig,
    DataConfig,
    HealthConfig,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from clip_jax.runs.provenance import check_resume, environment, from_json, to_json

RUN = TrainConfig()


def changed(**fields) -> dict:
    return to_json(dataclasses.replace(RUN, **fields))


def test_settings_survive_json():
    cfg = dataclasses.replace(RUN, data=DataConfig(source=("a", "b"), weights=(0.5, 1.0)))
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(cfg))), origin="f") == cfg


def test_settings_that_an_older_version_lacked_have_their_defaults():
    data = to_json(RUN)
    del data["health"], data["data"]["workers"]
    assert from_json(TrainConfig, data, origin="f") == RUN


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("data", "wrokers"), 1, "run/config.json has settings .* does not know: wrokers"),
        (("data", "batch_size"), "many", "run/config.json does not hold a TrainConfig: .*batch"),
        (("optimizer", "schedule"), "spiral", "run/config.json does not hold .*schedule"),
        (("data", "source"), 7, "run/config.json does not hold a TrainConfig"),
    ],
)
def test_settings_that_make_no_sense_are_named_with_their_file(path, value, message):
    data = to_json(RUN)
    data[path[0]][path[1]] = value
    with pytest.raises(ValueError, match=message):
        from_json(TrainConfig, data, origin="run/config.json")


REFUSED = {
    "seed": {"seed": 1},
    "steps": {"steps": 2000},
    "data.batch_size": {"data": DataConfig(batch_size=512)},
    "data.source": {"data": DataConfig(source=("pairs:other.csv",))},
    "optimizer.learning_rate": {"optimizer": OptimizerConfig(learning_rate=1e-3)},
    "health.skip_nonfinite": {"health": HealthConfig(skip_nonfinite=False)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_training_is_refused_until_it_is_allowed_by_name(name):
    new = changed(**REFUSED[name])
    with pytest.raises(ValueError, match=f"{name}: .* -> .*--checkpoint.allow-change {name}$"):
        check_resume(to_json(RUN), new)
    assert [change.name for change in check_resume(to_json(RUN), new, (name,))] == [name]
    group = (name.rpartition(".")[0],) if "." in name else (name,)
    assert check_resume(to_json(RUN), new, group)


def test_all_refused_changes_are_named_at_once():
    new = changed(seed=1, steps=2000, data=DataConfig(batch_size=512))
    with pytest.raises(ValueError, match=r"data.batch_size: 256 -> 512; seed: 0 -> 1; steps: "):
        check_resume(to_json(RUN), new, ("optimizer",))


def test_what_leaves_the_training_alone_may_change_and_is_listed():
    new = changed(
        workdir="elsewhere",
        mesh=MeshConfig(fsdp=4),
        logging=LoggingConfig(every_steps=3),
        checkpoint=CheckpointConfig(keep_last=5, allow_change=("seed",)),
        data=DataConfig(threads=3, workers=2),
        health=HealthConfig(hang_seconds=60.0),
    )
    names = [change.name for change in check_resume(to_json(RUN), new)]
    assert {"workdir", "mesh.fsdp", "data.threads", "health.hang_seconds"} <= set(names)
    assert check_resume(to_json(RUN), to_json(RUN)) == []


def test_other_data_under_the_same_name_is_refused():
    old, new = to_json(RUN), to_json(RUN)
    old["data"]["fingerprint"], new["data"]["fingerprint"] = "aa", "bb"
    with pytest.raises(ValueError, match=r'data\.fingerprint: "aa" -> "bb"'):
        check_resume(old, new)


def test_allowing_a_setting_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"allow_change names no setting: data\.batchsize"):
        check_resume(to_json(RUN), to_json(RUN), ("data.batchsize",))


def test_a_new_token_in_a_url_is_no_change():
    old = changed(data=DataConfig(source=("tar:https://h/a.tar?token=one",)))
    new = {
        **to_json(RUN),
        "data": dataclasses.asdict(DataConfig(source=["tar:https://h/a.tar?token=two"])),
    }
    assert check_resume(old, json.loads(json.dumps(new))) == []


def test_the_environment_names_versions_and_devices():
    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"]["count"] == jax.device_count()
    assert json.loads(json.dumps(found)) == found
