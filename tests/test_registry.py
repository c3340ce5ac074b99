"""Choices by name: from a table, or from a module outside the tree."""

import math

import pytest

from clip_jax.registry import resolve

TABLE = {"softmax": 1, "sigmoid": 2}


def test_a_name_of_the_table_gives_its_record():
    assert resolve("loss.kind", "sigmoid", TABLE) == 2


def test_a_name_from_outside_needs_no_line_in_the_table():
    assert resolve("loss.kind", "math:tau", TABLE) == math.tau


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sigmod", "loss.kind='sigmod' is not one of .* the nearest is 'sigmoid'"),
        ("no_such_module:X", "no_such_module cannot be imported"),
        ("math:taw", "math has no attribute 'taw'; the nearest is 'tau'"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        resolve("loss.kind", name, TABLE)
