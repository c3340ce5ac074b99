"""Checkpoints: the bits that come back, which are kept, and what happens to damaged ones."""

import dataclasses
import errno
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.config import CheckpointConfig
from clip_jax.runs import checkpoints as checkpoints_lib
from clip_jax.runs import manifest, save_retries
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.save_retries import SaveFailed

EVERY_STEP = CheckpointConfig(every_steps=1, every_minutes=None, keep_last=3)


def make_state(value: float = 1.0) -> dict:
    bits = np.arange(4096, dtype=np.uint32) * np.uint32(1_048_583)  # NaNs and denormals too
    return {
        "step": jnp.asarray(7, jnp.int32),
        "params": {
            "kernel": jnp.full((64, 8), float(value)),
            "odd": jnp.asarray(bits.view(np.float32)),
        },
        "moments": (jnp.full((64, 8), value / 3, jnp.bfloat16), ()),
        "ema": None,
        "frozen": {},
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save_steps(directory, *steps, cfg=EVERY_STEP, **kwargs):
    with Checkpoints(directory, cfg) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), metadata={"note": step}, **kwargs)


def restored_step(directory, cfg=EVERY_STEP) -> int:
    with Checkpoints(directory, cfg) as checkpoints:
        restored = checkpoints.restore(abstract(make_state()))
        kernel = restored.state["params"]["kernel"]
        np.testing.assert_array_equal(kernel, np.full((64, 8), restored.step, np.float32))
        return restored.step


def steps_in(directory) -> list[int]:
    return sorted(int(path.name) for path in Path(directory).iterdir() if path.name.isdigit())


def largest_file(directory) -> Path:
    files = (path for path in Path(directory, "state").rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def test_every_bit_comes_back_with_the_metadata(tmp_path):
    state = make_state(0.1)
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        assert checkpoints.save(7, state, metadata={"config": {"seed": 3}})
        assert not checkpoints.is_evaluated(7)
        checkpoints.record(7, {"top1": 0.5})
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        restored = checkpoints.restore(abstract(state))
        assert checkpoints.is_evaluated(7)
    assert restored.step == 7
    assert restored.metadata["config"] == {"seed": 3}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state)):
        assert new.dtype == old.dtype
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def test_the_state_may_be_donated_while_it_is_still_being_written(tmp_path):
    destroy = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    state = {"kernel": jnp.arange(1 << 20, dtype=jnp.float32)}
    like = abstract(state)
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        checkpoints.save(1, state, metadata={})
        jax.block_until_ready(destroy(state))
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        kernel = checkpoints.restore(like).state["kernel"]
    np.testing.assert_array_equal(kernel, np.arange(1 << 20, dtype=np.float32))


@pytest.mark.parametrize(
    ("saved", "wanted"), [((8, 1), (2, 4)), ((2, 4), (1, 1)), ((1, 1), (4, 2))]
)
def test_a_state_is_restored_onto_another_mesh(tmp_path, saved, wanted):
    def place(shape):
        devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        return NamedSharding(jax.sharding.Mesh(devices, ("data", "fsdp")), P("fsdp"))

    kernel = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        checkpoints.save(1, {"kernel": jax.device_put(kernel, place(saved))}, metadata={})
    like = {"kernel": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=place(wanted))}
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        restored = checkpoints.restore(like).state["kernel"]
    assert restored.sharding == place(wanted)
    np.testing.assert_array_equal(restored, kernel)


def test_an_empty_folder_restores_nothing(tmp_path):
    with Checkpoints(tmp_path / "new", EVERY_STEP) as checkpoints:
        assert checkpoints.restore(abstract(make_state())) is None


# ------------------------------------------------------------------------------------ damage


def flip_bit(step):
    path = largest_file(step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(step):
    path = largest_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_out(step):
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


DAMAGES = {
    "a flipped bit": (flip_bit, "other bytes"),
    "half a file": (truncate, "bytes where"),
    "a lost file": (lambda step: largest_file(step).unlink(), "is missing"),
    "a lost manifest": (lambda step: (step / manifest.NAME).unlink(), "never completed"),
    "half a manifest": (lambda step: (step / manifest.NAME).write_text('{"files"'), "cannot be"),
    "other metadata": (lambda step: (step / "metadata/metadata").write_text("{}"), "bytes where"),
    "nothing left": (empty_out, "never completed"),
    "no marks": (lambda step: (step / "_CHECKPOINT_METADATA").write_text("{"), None),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_set_aside_and_the_checkpoint_before_is_used(tmp_path, caplog, name):
    damage, message = DAMAGES[name]
    save_steps(tmp_path, 1, 2, 3)
    damage(tmp_path / "3")
    with caplog.at_level(logging.WARNING):
        if message is None:  # no byte of the state is concerned
            assert restored_step(tmp_path) == 3
            return
        assert restored_step(tmp_path) == 2
    assert "STEP 3 IS DAMAGED" in caplog.text and message in caplog.text
    assert (tmp_path / "damaged" / "3").is_dir()
    assert steps_in(tmp_path) == [1, 2]
    save_steps(tmp_path, 3)
    assert restored_step(tmp_path) == 3


def test_damage_that_another_process_found_counts_in_this_one_too(tmp_path, monkeypatch, caplog):
    save_steps(tmp_path, 1, 2)
    exchange, asked = checkpoints_lib._exchange, []

    def with_another(values):
        """Of two processes the other one finds its share of the newest step damaged."""
        own = exchange(values)
        asked.append(values)
        return np.concatenate([own, [[len(asked) == 1]]]) if values == [False] else own

    monkeypatch.setattr(checkpoints_lib, "_exchange", with_another)
    with caplog.at_level(logging.WARNING):
        assert restored_step(tmp_path) == 1
    assert "STEP 2 IS DAMAGED: another process found damage in it" in caplog.text


def test_a_step_that_was_damaged_twice_keeps_both_remains(tmp_path):
    save_steps(tmp_path, 1)
    # Of another step, and one that a person has put there.
    for name in ("20", "2.2"):
        (tmp_path / "damaged" / name).mkdir(parents=True)
    for _ in range(3):
        save_steps(tmp_path, 2)
        flip_bit(tmp_path / "2")
        assert restored_step(tmp_path) == 1
    assert {path.name for path in (tmp_path / "damaged").glob("2*")} == {
        *("2", "2.1", "2.2", "2.3", "20")
    }


def test_a_folder_that_is_no_checkpoint_does_not_count_as_the_latest(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "99999999").mkdir()
    assert restored_step(tmp_path) == 1


def test_a_run_never_starts_afresh_when_all_its_checkpoints_are_damaged(tmp_path):
    save_steps(tmp_path, 1, 2)
    flip_bit(tmp_path / "1")
    truncate(tmp_path / "2")
    for _ in range(2):  # the second time too
        with pytest.raises(ValueError, match=r"No checkpoint in .* is intact .*step 2: .*step 1: "):
            restored_step(tmp_path)
    assert steps_in(tmp_path) == [1, 2]


def test_another_model_or_type_is_refused_by_the_name_of_its_arrays(tmp_path):
    save_steps(tmp_path, 1)
    like = abstract(make_state())
    like["params"]["kernel"] = jax.ShapeDtypeStruct((64, 9), jnp.float32)
    like["moments"] = (jax.ShapeDtypeStruct((64, 8), jnp.float32), ())
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(like)
    assert "2 arrays differ" in str(error.value)
    assert "params/kernel: saved float32[64, 8], wanted float32[64, 9]" in str(error.value)
    assert "moments/0: saved bfloat16[64, 8], wanted float32[64, 8]" in str(error.value)


# ---------------------------------------------------------------------------- what and when


def test_what_is_about_to_be_evaluated_is_saved(tmp_path, caplog):
    cfg = CheckpointConfig(every_steps=None, every_minutes=None, keep_best_by="top1")
    with Checkpoints(tmp_path, cfg) as checkpoints:
        saved = [
            checkpoints.save(step, make_state(), metadata={}, due=due)
            for step, due in enumerate([True, False, True])
        ]
        assert saved == [True, False, True]
        checkpoints.record(2, {"recall": 1.0})  # a metric that is not there costs no state
    assert "keep_best_by=top1 was not measured: ['recall'] were" in caplog.text


def test_minutes_pass_by_a_clock_that_cannot_be_set_back(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(checkpoints_lib.time, "monotonic", lambda: now[0])
    cfg = CheckpointConfig(every_steps=None, every_minutes=10)
    with Checkpoints(tmp_path, cfg) as checkpoints:
        saved = []
        for step in range(1, 31):
            now[0] += 60
            if checkpoints.save(step, make_state(), metadata={}):
                saved.append(step)
                checkpoints.wait()
        assert saved == [10, 20, 30]


def test_a_forced_save_is_on_disk_when_it_returns_and_made_once(tmp_path):
    cfg = CheckpointConfig(every_steps=2, every_minutes=None)
    with Checkpoints(tmp_path, cfg) as checkpoints:
        assert not checkpoints.save(1, make_state(1), metadata={})
        assert checkpoints.save(1, make_state(1), metadata={}, force=True)
        assert manifest.damage(checkpoints.directory / "1") is None
        assert not checkpoints.save(1, make_state(1), metadata={}, force=True)
        checkpoints.save(2, make_state(2), metadata={})
        assert checkpoints.save(2, make_state(2), metadata={}, force=True)  # it waits
        assert manifest.damage(checkpoints.directory / "2") is None


@pytest.mark.parametrize("change", [{"every_steps": 0}, {"keep_last": 0}])
def test_a_setting_that_would_never_save_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match=rf"checkpoint\.{next(iter(change))}=0"):
        Checkpoints(tmp_path, dataclasses.replace(EVERY_STEP, **change))


# --------------------------------------------------------------------------------- failures


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: while it is on, nothing can be committed."""
    write, full = manifest.write, [True]

    def maybe(directory):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(directory)

    monkeypatch.setattr(manifest, "write", maybe)
    monkeypatch.setattr(save_retries, "FIRST_PAUSE_S", 0.01)
    return full


def test_training_goes_on_while_a_save_fails_and_it_is_tried_again(tmp_path, full_disk, caplog):
    cfg = CheckpointConfig(every_steps=None, every_minutes=1e-9, keep_last=3)
    full_disk[0] = False
    with Checkpoints(tmp_path, cfg) as checkpoints:
        checkpoints.save(1, make_state(1), metadata={})
        checkpoints.wait()
        full_disk[0] = True
        checkpoints.save(2, make_state(2), metadata={})
        while "step 2: OSError" not in caplog.text:
            checkpoints.save(3, make_state(3), metadata={})
        assert "No space left on device" in caplog.text
        full_disk[0] = False
        step = 4
        while "can be written again" not in caplog.text:
            checkpoints.save(step, make_state(step), metadata={})
            step += 1
    assert not list(tmp_path.glob("*tmp*"))
    assert restored_step(tmp_path) >= 3
    assert 1 in steps_in(tmp_path) or len(steps_in(tmp_path)) == 3


def test_a_last_save_is_tried_until_there_is_room(tmp_path, full_disk, monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        full_disk[0] = len(naps) < 3

    monkeypatch.setattr(save_retries.time, "sleep", nap)
    with Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        assert checkpoints.save(5, make_state(5), metadata={}, force=True)
    assert len(naps) == 3
    assert restored_step(tmp_path) == 5


def test_a_run_stops_when_nothing_could_be_saved_for_too_long(tmp_path, full_disk):
    cfg = dataclasses.replace(EVERY_STEP, retry_seconds=0.05)
    full_disk[0] = False
    checkpoints = Checkpoints(tmp_path, cfg)
    checkpoints.save(1, make_state(1), metadata={}, force=True)
    full_disk[0] = True
    with pytest.raises(
        SaveFailed, match=r"retry_seconds=0.05 .*No space left.*resumes from step 1"
    ):
        checkpoints.save(2, make_state(2), metadata={}, force=True)
    assert restored_step(tmp_path) == 1


def test_an_error_on_the_way_out_does_not_hide_the_first_one(tmp_path, full_disk):
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path, EVERY_STEP) as checkpoints:
        checkpoints.save(1, make_state(1), metadata={})
        raise ZeroDivisionError


@pytest.mark.parametrize("name", ["br[a]", "lr=1e-3,[x]", "a*b?"])
def test_a_folder_of_any_name_holds_checkpoints_that_come_back(tmp_path, name):
    save_steps(tmp_path / name, 1, 2)
    assert restored_step(tmp_path / name) == 2


def test_a_checkpoint_that_cannot_be_opened_does_not_count_as_saved(tmp_path, monkeypatch, caplog):
    # What Orbax does in a folder whose name it takes for a pattern: files are not merged.
    monkeypatch.setattr("etils.epath.gpath.PosixGPath.glob", lambda self, pattern: iter(()))
    monkeypatch.setattr(save_retries, "FIRST_PAUSE_S", 0.01)
    cfg = dataclasses.replace(EVERY_STEP, retry_seconds=0.05)
    with pytest.raises(SaveFailed, match="cannot be read after it was written"):  # noqa: SIM117
        with Checkpoints(tmp_path, cfg) as checkpoints:
            checkpoints.save(1, make_state(), metadata={}, force=True)
    assert not list(Path(tmp_path).glob("[0-9]*/MANIFEST.json"))
