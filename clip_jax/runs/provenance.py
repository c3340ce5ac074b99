"""What a run or a checkpoint was made with: versions of libraries, random numbers and devices."""

import importlib.metadata
import platform

import jax

LIBRARIES = ("clip_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict:
    """The versions, the random number generator and the devices that a checkpoint is made with."""
    devices = jax.devices()
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "versions": versions | {"python": platform.python_version()},
        "random": {
            "default_prng_impl": jax.config.jax_default_prng_impl,
            "threefry_partitionable": jax.config.jax_threefry_partitionable,
        },
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
    }
