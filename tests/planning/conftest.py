"""Plans read what compilers make of programs."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_as_in_a_run(optimized):
    """Its programs are optimized, as no others of the tests are."""
