"""What a checkpoint says that it was made with."""

import json

import jax

from clip_jax.runs.provenance import environment


def test_the_environment_names_versions_random_numbers_and_devices():
    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["random"]["default_prng_impl"] == "threefry2x32"
    assert found["devices"]["count"] == jax.device_count()
    assert json.loads(json.dumps(found)) == found
