"""Log files of the processes of a run."""

import logging

import pytest

from clip_jax.distributed import initialize
from clip_jax.distributed.process_logs import process_logs


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr(initialize, "several", lambda: True)
    monkeypatch.setattr(initialize, "own_index", lambda: 1)


def test_each_process_writes_what_it_does_into_its_own_file(second_of_two, tmp_path):
    log = logging.getLogger("clip_jax.somewhere")
    before = logging.getLogger().handlers[:], logging.getLogger("clip_jax").level
    with process_logs(tmp_path, is_local=True):
        log.info("quiet, of %s", "https://me:hunter2@host/x")
    log.info("after")
    text = (tmp_path / "logs" / "process-01.log").read_text()
    assert "process 1 of" in text and "quiet, of https://***@host/x" in text
    assert text.rstrip().endswith("the end")
    assert (logging.getLogger().handlers, logging.getLogger("clip_jax").level) == before


def test_an_error_is_kept_with_its_place(second_of_two, tmp_path):
    with pytest.raises(KeyError), process_logs(tmp_path, is_local=True):
        raise KeyError("lost")
    text = (tmp_path / "logs" / "process-01.log").read_text()
    assert "the end, by an error" in text and "KeyError: 'lost'" in text and "Traceback" in text


def test_a_single_process_and_one_in_a_bucket_have_no_file(monkeypatch, tmp_path):
    with process_logs(tmp_path, is_local=True):
        pass
    monkeypatch.setattr(initialize, "several", lambda: True)
    with process_logs(tmp_path, is_local=False):
        pass
    assert not list(tmp_path.iterdir())
