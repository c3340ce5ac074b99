"""What the machine may lack, as one line: a backend, device memory, switches that JAX must not have."""

import logging
import os
import re
import zlib

import jax

# JAX counts a damaged entry of its cache as absent, and then keeps it; only here is it found.
from jax._src import compilation_cache

log = logging.getLogger(__name__)

# What only some commands need, and the extra that installs it.
EXTRAS = {
    "pyarrow": "search",
    "usearch": "search",
    "faiss": "search",
    "starlette": "serve",
    "uvicorn": "serve",
    "h11": "serve",
    "sklearn": "map",
    "umap": "map",
    "apache_beam": "beam",
}


def check_switches():
    """Refuse switches of JAX under which a train step does not compile."""
    known = {
        "jax_enable_x64": False,
        "jax_numpy_dtype_promotion": "standard",
        "jax_disable_jit": False,
    }
    for name, works in known.items():
        if (value := getattr(jax.config, name)) != works:
            raise ValueError(
                f"{name.upper()}={value} is set in the environment; training computes in float32 "
                f"and bfloat16 and needs {name.upper()}={works}: unset it"
            )


def explain(error: BaseException) -> str | None:
    """One line for an error that the environment causes; None for any other."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        extra = EXTRAS[error.name]
        return (
            f"this needs {error.name}, which is not installed: pip install -e '.[{extra}]' "
            "in the clone of clip_jax"
        )
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_code.co_filename if trace is not None else ""
    if where.endswith("xla_bridge.py") and isinstance(error, RuntimeError | AssertionError):
        asked = jax.config.jax_platforms
        reason = str(error).splitlines()[0] if str(error) else "JAX has no plugin for it here"
        return (
            f"JAX cannot use JAX_PLATFORMS={asked}: {reason}. Unset JAX_PLATFORMS to use what is "
            "there, or install JAX for that hardware"
        )
    if is_out_of_memory(error):
        return f"{out_of_memory(error)}. Lower --evaluation.batch-size or --mesh.data"
    if isinstance(error, ImportError) and where.endswith("registry.py") and "fsspec" in where:
        module = getattr(error.__cause__, "name", None)
        mend = f": pip install {module}" if module else ""
        return f"the storage of a URL is not known here, as a package is missing. {error}{mend}"
    if isinstance(error, FloatingPointError):
        return (
            f"{str(error).splitlines()[0]} JAX_DEBUG_NANS or JAX_DEBUG_INFS ends a run there: unset "
            "it, and the step is skipped"
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return f"{error} Set HOME, or name paths without ~"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(error: BaseException) -> str:
    """What did not fit, in a few words."""
    size = re.search(r"allocat\w* ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", str(error))
    return "Out of device memory" + (f" at {size[1]}" if size else "")


def compress(executable: bytes) -> bytes:
    """As JAX compresses a program for its cache, with a checksum.

    Without it most flipped bits of an entry come through, and the program runs with them.
    """
    if (zstd := compilation_cache.zstd) is not None:  # Python's own, from 3.14 on
        return zstd.compress(executable, options={zstd.CompressionParameter.checksum_flag: 1})
    if (zstandard := compilation_cache.zstandard) is not None:
        return zstandard.ZstdCompressor(write_checksum=True).compress(executable)
    return zlib.compress(executable)  # which always has one


def replace_damaged_programs():
    """Remove an entry of JAX's compilation cache that cannot be read, so that it is written again."""
    compilation_cache.compress_executable = compress
    read = compilation_cache.get_executable_and_time

    def read_or_remove(cache_key: str, *args, **kwargs):
        try:
            return read(cache_key, *args, **kwargs)
        except Exception:
            path = os.path.join(jax.config.jax_compilation_cache_dir or "", f"{cache_key}-cache")
            if os.path.isfile(path):
                os.unlink(path)
                log.warning("%s was damaged: the program is compiled again", path)
            raise

    if read.__name__ != read_or_remove.__name__:
        compilation_cache.get_executable_and_time = read_or_remove
