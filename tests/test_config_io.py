"""Settings from Python files and JSON, under the names of now and of before, and what differs."""

import dataclasses
import json

import pytest

from clip_jax.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    DistributedConfig,
    HealthConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from clip_jax.config_io import (
    RENAMED,
    RENAMED_VALUES,
    check_resume,
    flatten,
    from_json,
    read_config,
    run_settings,
    to_json,
)
from clip_jax.models.architectures import ARCHITECTURES

RUN = TrainConfig()

HEAD = "from clip_jax.config import *\n"


@pytest.fixture
def write(tmp_path):
    """`write(expression)`: a file whose get_config() returns it."""

    def make(expression: str) -> str:
        file = tmp_path / "mine.py"
        file.write_text(f"{HEAD}def get_config():\n    return {expression}\n")
        return str(file)

    return make


def test_a_file_gives_what_its_get_config_returns(write):
    assert read_config(write("TrainConfig(steps=7)")) == TrainConfig(steps=7)


def test_what_is_not_there_is_named_with_what_is(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config file smal.py; .*configs/small.py"):
        read_config("smal.py")


def test_a_file_of_another_kind_is_refused(write, tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"empty.py.*: it defines no function get_config"):
        read_config(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match=r"returns dict; it must return a TrainConfig"):
        read_config(write("{}"))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ('model=ModelSettings(freeze="both")', "model.freeze='both'.* 'none', 'image', 'text'"),
        ('steps="10"', "steps='10' must be a whole number"),
        ("steps=True", "steps=True must be a whole number"),
        ("data=DataConfig(batch_size=2.5)", "data.batch_size=2.5"),
        ('data=DataConfig(source="shapes")', "data.source='shapes'"),
        ("data=DataConfig(augment=AugmentConfig(crop_scale=(1.0,)))", "data.augment.crop_scale"),
        ("data=None", "data=None"),
        ("loss=LossConfig(knd=1)", "TypeError: .*'knd'; the nearest is kind"),
        ("loss=LossConfig(movement='ring')", "loss.movement is named loss.distributed now"),
        ("loss=LossConfig(distributed='dense')", "'dense' is named 'replicated' now"),
        ("evaluation=EvaluationConfig(retrieval=False)", "retrieval is named evaluation.metrics"),
        ("steps=1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_fails_is_named_with_the_line_and_the_setting(write, expression, message):
    with pytest.raises(ValueError, match=rf"mine.py, line 3: .*{message}"):
        read_config(write(f"TrainConfig({expression})"))


def test_a_file_that_is_no_python_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(:")
    with pytest.raises(ValueError, match=r"mine.py: SyntaxError: .*line 1"):
        read_config(str(tmp_path / "mine.py"))


def test_whole_numbers_and_none_fit_where_they_are_meant(write):
    found = read_config(
        write(
            "TrainConfig(optimizer=OptimizerConfig(learning_rate=1, clip_norm=None), "
            "data=DataConfig(augment=AugmentConfig(color_jitter=(0, 0, 0, 0))))"
        )
    )
    assert found.optimizer.learning_rate == 1
    assert found.data.augment == dataclasses.replace(AugmentConfig(), color_jitter=(0, 0, 0, 0))


# ------------------------------------------------------------------------------------ JSON


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
        mesh=MeshConfig(fsdp=4),
        logging=LoggingConfig(every_steps=3),
        checkpoint=CheckpointConfig(keep_last=5),
        data=DataConfig(threads=3, workers=2),
        health=HealthConfig(hang_seconds=60.0),
    )
    names = [change.name for change in check_resume(to_json(RUN), new)]
    assert {"mesh.fsdp", "data.threads", "health.hang_seconds"} <= set(names)
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
        "data": dataclasses.asdict(DataConfig(source=("tar:https://h/a.tar?token=two",))),
    }
    assert check_resume(old, json.loads(json.dumps(new))) == []


def test_settings_of_one_start_are_not_settings_of_the_run():
    started = changed(
        workdir="elsewhere",
        distributed=DistributedConfig(coordinator="a:1", processes=2, process_index=1),
        checkpoint=CheckpointConfig(allow_change=("seed",)),
    )
    assert check_resume(to_json(RUN), started) == []
    kept = flatten(run_settings(RUN))
    assert not [name for name in kept if name.startswith(("workdir", "distributed."))]
    assert "checkpoint.allow_change" not in kept and "checkpoint.keep_last" in kept
    # What older versions kept of them is left aside.
    assert from_json(TrainConfig, started, origin="f") == RUN


# ------------------------------------------------------------------------------- old names


def saved_by_5987b87(**evaluation) -> dict:
    data = to_json(RUN)
    del data["loss"]["distributed"], data["evaluation"]["metrics"]
    data["loss"]["movement"] = "dense"
    data["evaluation"] |= {"zero_shot": True, "retrieval": True} | evaluation
    return data


@pytest.mark.parametrize(
    ("evaluation", "metrics"),
    [
        ({}, {"loss", "retrieval", "zero_shot"}),
        ({"zero_shot": False}, {"loss", "retrieval"}),
        ({"retrieval": False}, {"zero_shot"}),
        ({"zero_shot": False, "retrieval": False}, set()),
    ],
)
def test_a_saved_run_is_read_under_the_names_of_now(evaluation, metrics):
    cfg = from_json(TrainConfig, saved_by_5987b87(**evaluation), origin="f")
    assert cfg.loss.distributed == "replicated"
    assert set(cfg.evaluation.metrics) == metrics
    assert dataclasses.replace(cfg, loss=RUN.loss, evaluation=RUN.evaluation) == RUN


def test_every_old_name_leads_to_a_setting_that_there_is():
    known = flatten(to_json(RUN))
    assert set(RENAMED.values()) | RENAMED_VALUES.keys() <= known.keys()
    assert not RENAMED.keys() & known.keys()


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_a_model_that_was_saved_before_towers_had_names_comes_back(name):
    saved = to_json(ARCHITECTURES[name])
    assert from_json(ModelConfig, saved, origin="model.json") == ARCHITECTURES[name]
    assert {saved[side].pop("tower") for side in ("vision", "text")} & {"text_transformer"}
    assert from_json(ModelConfig, saved, origin="model.json") == ARCHITECTURES[name]
