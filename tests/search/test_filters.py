"""Conditions on metadata pick the rows that satisfy all of them."""

import pyarrow as pa
import pytest

from clip_jax.search.filters import Condition, allowed, parse_filters

TABLE = pa.table(
    {
        "caption": ["A red Dog", "a dog (small)", None, "cat", "x=y"],
        "label": pa.array([1, 2, 3, None, 5], pa.int32()),
        "score": [0.5, 1.5, 2.5, 3.5, 4.5],
        "tags": [["a"], [], None, ["b"], ["a"]],
    }
)


@pytest.mark.parametrize(
    "conditions, rows",
    [
        (["caption~DOG"], [0, 1]),
        (["caption~dog (small)"], [1]),
        (["caption~x=y"], [4]),
        (["label=3"], [2]),
        (["label>=2", "score<=3"], [1, 2]),
        (["caption=cat"], [3]),
        (["score>=0.6", "score<=4"], [1, 2, 3]),
        (["label<=9"], [0, 1, 2, 4]),
        ([], [0, 1, 2, 3, 4]),
    ],
)
def test_rows_satisfy_all_conditions(conditions, rows):
    assert allowed(TABLE, parse_filters(conditions)).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    "condition, message",
    [
        (Condition("colour", "=", "red"), "there are caption, label"),
        (Condition("label", "=", "three"), "cannot be compared"),
        (Condition("label", "~", "3"), "cannot be compared"),
        (Condition("tags", "=", "a"), "cannot be compared"),
        (Condition("label", "!", "3"), "is one of = ~"),
    ],
)
def test_what_cannot_be_compared_is_refused(condition, message):
    with pytest.raises(ValueError, match=message):
        allowed(TABLE, [condition])


def test_what_is_no_condition_is_refused():
    with pytest.raises(ValueError, match="COLUMN=VALUE"):
        parse_filters(["dog"])
