"""Released weights behind URLs, in a bucket (fsspec's file system in memory) and on a web server."""

import functools
import http.server
import json
import threading

import chex
import fsspec
import pytest

import clip_jax
from clip_jax import storage
from clip_jax.models.architectures import model_config
from clip_jax.weights.export import export
from clip_jax.weights.remote import local_copy

WEIGHTS = ("best.safetensors", "other.index.json", "other.bin")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def bucket():
    """`bucket(name=content, ...)` puts files into one; its URL."""
    filesystem = fsspec.filesystem("memory")

    def put(files: dict[str, bytes]) -> str:
        for name, content in files.items():
            filesystem.pipe_file(f"/models/clip/{name}", content)
        return "memory://models/clip"

    yield put
    filesystem.rm("/models", recursive=True)


@pytest.fixture
def released(random_variables, tmp_path):
    """A file of weights with its config beside it, and the variables in it."""
    config = model_config("ViT-test")
    variables = random_variables(config)
    export(tmp_path / "released", config, variables, to="open_clip")
    return tmp_path / "released", variables


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_of_a_folder_come_the_preferred_weights_and_what_belongs_to_them(bucket):
    files = ["best.safetensors", "other.bin", "config.json", "merges.txt", "README.md"]
    found = local_copy(bucket({name: name.encode() for name in files}), WEIGHTS)
    assert names(found) == ["best.safetensors", "config.json", "merges.txt"]
    assert (found / "best.safetensors").read_bytes() == b"best.safetensors"


def test_shards_come_with_their_index(bucket):
    files = ["other.index.json", "other-1-of-2.bin", "other-2-of-2.bin", "else-1-of-2.bin"]
    found = local_copy(bucket(dict.fromkeys(files, b"x")), WEIGHTS)
    assert names(found) == ["other-1-of-2.bin", "other-2-of-2.bin", "other.index.json"]


def test_any_storage_but_a_web_server_has_folders(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "other.bin").write_bytes(b"x")
    assert names(local_copy(f"local://{tmp_path}/clip", WEIGHTS)) == ["other.bin"]


def test_a_file_is_copied_once_and_again_when_it_has_changed(bucket, caplog):
    caplog.set_level("INFO", "clip_jax")
    url = bucket({"other.bin": b"old", "config.json": b"{}"}) + "/other.bin"
    first = local_copy(url, WEIGHTS)
    assert (first.read_bytes(), names(first.parent)) == (b"old", ["config.json", "other.bin"])
    assert local_copy(url, WEIGHTS) == first
    assert caplog.text.count("copying") == 1
    bucket({"other.bin": b"newer"})
    assert local_copy(url, WEIGHTS).read_bytes() == b"newer"


def test_a_copy_that_is_cut_short_leaves_nothing(bucket, monkeypatch, tmp_path):
    filesystem = fsspec.filesystem("memory")
    url = bucket({"best.safetensors": b"whole"})

    def fail(source, target):
        with open(target, "wb") as file:
            file.write(b"wh")
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as broken:
        broken.setattr(filesystem, "get_file", fail)
        with pytest.raises(OSError, match=r"best\.safetensors cannot be read.*reset by peer"):
            local_copy(url, WEIGHTS)
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]
    assert (local_copy(url, WEIGHTS) / "best.safetensors").read_bytes() == b"whole"


def test_a_file_that_changes_while_it_is_copied_is_refused(bucket, monkeypatch, tmp_path):
    filesystem = fsspec.filesystem("memory")
    url, get_file = bucket({"best.safetensors": b"old", "config.json": b"{}"}), filesystem.get_file

    def get_and_change(source, target):
        bucket({"best.safetensors": b"newer"})
        get_file(source, target)

    with monkeypatch.context() as changing:
        changing.setattr(filesystem, "get_file", get_and_change)
        with pytest.raises(OSError, match=r"best\.safetensors changed while it was copied, from 3"):
            local_copy(url, WEIGHTS)
    assert (local_copy(url, WEIGHTS) / "best.safetensors").read_bytes() == b"newer"


def test_what_is_not_there_is_named(bucket):
    url = bucket({"README.md": b""})
    with pytest.raises(FileNotFoundError, match=r"clip holds none of best\.safetensors"):
        local_copy(url, WEIGHTS)
    with pytest.raises(FileNotFoundError, match="clop is not there"):
        local_copy("memory://models/clop", WEIGHTS)


def test_weights_in_a_bucket_load_as_those_on_a_disk(bucket, released):
    folder, variables = released
    url = bucket({path.name: path.read_bytes() for path in folder.iterdir()})
    for path in (url, f"{url}/{clip_jax.weights.load.WEIGHTS[0]}"):
        loaded = clip_jax.load(path)
        assert loaded.model.config.embed_dim == model_config("ViT-test").embed_dim
        chex.assert_trees_all_equal(loaded.variables, variables)


def test_a_file_of_a_web_server_loads(released):
    folder, variables = released
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        (file,) = folder.glob("*.safetensors")
        url = f"http://127.0.0.1:{server.server_port}/{file.name}"
        loaded = clip_jax.load(url, "ViT-test")
        chex.assert_trees_all_equal(loaded.variables, variables)
        with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
            clip_jax.load(url.replace(file.name, "gone.safetensors"), "ViT-test")
    finally:
        server.shutdown()
        server.server_close()


def test_a_step_is_of_runs(bucket):
    with pytest.raises(ValueError, match="step=3 is of runs"):
        clip_jax.load(bucket({"config.json": json.dumps({}).encode()}), step=3)
