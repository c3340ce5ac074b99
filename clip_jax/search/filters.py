"""Which rows of the metadata satisfy conditions."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

OPERATORS = ("=", "~", ">=", "<=")
CONDITION = re.compile(r"([^=~<>]+?)(>=|<=|=|~)(.*)", re.DOTALL)


class Condition(NamedTuple):
    """A column, how it is compared, and with what. "~": the text is in it, in any case."""

    column: str
    operator: str
    value: str | float | int


def parse_filters(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Conditions such as "label=3", "caption~dog", "width>=512".

    Raises:
      ValueError: one is not of this form.
    """
    found = []
    for text in texts:
        parts = CONDITION.fullmatch(text)
        if parts is None:
            raise ValueError(
                f"{text!r} is no condition: write COLUMN=VALUE, COLUMN~TEXT, COLUMN>=NUMBER or "
                "COLUMN<=NUMBER"
            )
        found.append(Condition(parts[1].strip(), parts[2], parts[3].strip()))
    return tuple(found)


def allowed(table: pa.Table, conditions: Sequence[Condition]) -> np.ndarray:
    """(rows,) bool, the rows that satisfy all conditions. A missing value satisfies none.

    Raises:
      ValueError: there is no such column, or its values cannot be compared so.
    """
    mask_N = np.ones(table.num_rows, bool)
    for condition in conditions:
        if condition.column not in table.column_names:
            raise ValueError(
                f"there is no column {condition.column!r}; there are {', '.join(table.column_names)}"
            )
        try:
            found = _compare(table[condition.column], condition)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            kind = table[condition.column].type
            raise ValueError(
                f"column {condition.column!r} of type {kind} cannot be compared with "
                f"{condition.operator}{str(condition.value)[:80]!r}"
            ) from error
        mask_N &= np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), bool)
    return mask_N


def _compare(column: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    operator, value = condition.operator, condition.value
    if operator not in OPERATORS:
        raise ValueError(f"a condition is one of {' '.join(OPERATORS)}, not {operator!r}")
    if operator == "~":
        return pc.match_substring(column, str(value), ignore_case=True)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number
    scalar = pa.scalar(str(value)).cast(column.type)
    compare = {"=": pc.equal, ">=": pc.greater_equal, "<=": pc.less_equal}[operator]
    return compare(column, scalar)
