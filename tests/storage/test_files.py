"""Patterns, ranges and retries, on disk and by URL."""

import fsspec
import pytest

from clip_jax import storage
from clip_jax.storage import open_files


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))


def test_a_range_past_the_end_is_short(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    assert storage.read_range(str(tmp_path / "f"), 4, 7) == b"456"
    assert storage.read_range(str(tmp_path / "f"), 8, 20) == b"89"
    assert storage.read_range(str(tmp_path / "f"), 20, 30) == b""


def test_no_more_than_the_set_number_of_files_stays_open(tmp_path, monkeypatch):
    monkeypatch.setattr(open_files, "OPEN_FILES", 3)
    files = open_files.OpenFiles()
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]))
        opened = files.get(str(tmp_path / str(number)))
        assert open_files.pread(opened, 0, 9) == bytes([number])
    assert len(files._files) == 3


def test_a_failure_that_passes_is_not_seen(tmp_path):
    failures = iter([OSError("stale handle"), TimeoutError("slow")])

    def read():
        error = next(failures, None)
        if error is not None:
            raise error
        return b"data"

    assert storage.retry(read, "f") == b"data"


def test_a_failure_that_stays_is_named_with_its_reason():
    def read():
        raise ConnectionError("reset by peer")

    with pytest.raises(
        OSError, match=r"s3://b/0\.tar cannot be read, after 3 tries.*reset by peer"
    ):
        storage.retry(read, "s3://b/0.tar")


def test_mistakes_are_not_tried_again():
    tries = []

    def read():
        tries.append(1)
        raise ValueError("no such bucket name")

    with pytest.raises(ValueError, match="no such bucket"):
        storage.retry(read, "f")
    assert len(tries) == 1


def test_a_storage_that_cannot_be_reached_is_named_with_the_file(monkeypatch):
    def refuse(url):
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.0,))
    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(storage.Failed, match=r"ftp://gone/a\.png cannot be read, after 2 tries"):
        storage.read_whole("ftp://gone/a.png")
