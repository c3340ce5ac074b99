"""What orbax prints of a failure and how it shares the writing, as we set it."""

import logging
import sys
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.runs.orbax_setup import SHARED_BYTES, hide_echoes, set_up_orbax


@pytest.fixture
def asyncio_logger():
    logger = logging.getLogger("asyncio")
    before = list(logger.filters)
    yield logger
    logger.filters[:] = before


def test_of_a_failed_save_the_failure_alone_is_shown(monkeypatch, asyncio_logger):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: shown.append(str(found.exc_value)))
    hide_echoes()
    hide_echoes()
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert shown == ["another"]


@pytest.mark.parametrize(
    ("module", "text", "count"),
    [
        ("orbax.checkpoint.serialization", "Task exception was never retrieved", 0),
        ("somebody.else", "Task exception was never retrieved", 1),
        ("orbax.checkpoint.serialization", "another message", 1),
    ],
)
def test_a_task_of_orbax_that_nobody_asked_for_is_an_echo(
    monkeypatch, asyncio_logger, caplog, module, text, count
):
    monkeypatch.setattr(sys, "unraisablehook", lambda found: None)
    hide_echoes()
    names = {"__name__": module}
    exec("def write(): raise OSError('the disk is full')", names)
    try:
        names["write"]()
    except OSError:
        asyncio_logger.error(text, exc_info=True)
    assert len(caplog.records) == count


@pytest.mark.parametrize(("rows", "sliced"), [(24, False), (SHARED_BYTES // 4, True)])
def test_an_array_that_is_small_is_written_by_one_replica(mesh, tmp_path, caplog, rows, sliced):
    set_up_orbax()
    everywhere = NamedSharding(mesh(8), P())
    x_NF = jax.device_put(np.arange(8 * rows, dtype=np.float32).reshape(rows, 8), everywhere)
    with jax.log_compiles(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"x": x_NF})
        checkpointer.wait_until_finished()
    assert ("jit(slice)" in caplog.text) == sliced
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "saved", {"x": x_NF})["x"]
    np.testing.assert_array_equal(found, x_NF)
