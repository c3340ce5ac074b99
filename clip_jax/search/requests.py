"""What a client sends, checked before anything is done with it, and what it is sent."""

import base64
import binascii
import json
import math
from typing import Any

from clip_jax.search.batching import Query
from clip_jax.search.filters import OPERATORS, Condition
from clip_jax.search.queries import MOST_WEIGHT, Part

MOST_BYTES = 12 * 2**20  # of a request's body: a picture of 9 MB in base64
MOST_PARTS, MOST_CONDITIONS, MOST_TEXT, MOST_RESULTS = 16, 8, 2000, 200
DEFAULT_K = 40


class BadRequest(ValueError):
    """A request that cannot be meant; the message is for its sender."""


def parse_query(body: bytes) -> Query:
    """A query out of the JSON of a request.

    {"query": [{"text": "a bicycle"}, {"image": BASE64, "weight": 0.5}, {"row": 7}], "k": 40,
    "where": [{"column": "label", "operator": "=", "value": 3}]}

    Raises:
      BadRequest: it is something else. Pictures are not decoded here.
    """
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {str(error)[:100]}") from error
    _require(isinstance(data, dict), "the body must be an object")
    known = {"query", "k", "where"}
    _require(data.keys() <= known, f"an object has {', '.join(sorted(known))} alone")
    parts, k, where = data.get("query"), data.get("k", DEFAULT_K), data.get("where", [])
    fits = isinstance(parts, list) and 1 <= len(parts) <= MOST_PARTS
    _require(fits, f"query must be a list of 1 to {MOST_PARTS} parts")
    _require(_is_int(k) and 1 <= k <= MOST_RESULTS, f"k must be from 1 to {MOST_RESULTS}")
    fits = isinstance(where, list) and len(where) <= MOST_CONDITIONS
    _require(fits, f"where must be a list of at most {MOST_CONDITIONS} conditions")
    return Query(tuple(map(_part, parts)), k, tuple(map(_condition, where)))


def _part(data: Any) -> Part:
    _require(isinstance(data, dict), "each part of a query must be an object")
    kinds = data.keys() - {"weight"}
    _require(
        len(kinds) == 1 and kinds <= {"text", "image", "row"},
        "each part of a query has one of text, image and row, and a weight",
    )
    (kind,) = kinds
    value, weight = data[kind], data.get("weight", 1.0)
    fits = _is_number(weight) and abs(weight) <= MOST_WEIGHT
    _require(fits, f"a weight must be a number from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}")
    if kind == "row":
        _require(_is_int(value) and 0 <= value < 2**63, "a row must be a whole number")
        return Part("row", value, float(weight))
    _require(isinstance(value, str) and bool(value.strip()), f"{kind} must be text, not empty")
    if kind == "text":
        _require(len(value) <= MOST_TEXT, f"a text has at most {MOST_TEXT} characters")
        return Part("text", value.encode("utf-8", "replace").decode(), float(weight))
    try:
        return Part("image", base64.b64decode(value, validate=True), float(weight))
    except (binascii.Error, ValueError) as error:
        raise BadRequest("an image must be a file in base64") from error


def _condition(data: Any) -> Condition:
    keys = {"column", "operator", "value"}
    _require(
        isinstance(data, dict) and data.keys() == keys, "a condition has column, operator, value"
    )
    column, operator, value = data["column"], data["operator"], data["value"]
    _require(isinstance(column, str) and len(column) <= 200, "a column must be text")
    _require(operator in OPERATORS, f"an operator is one of {' '.join(OPERATORS)}")
    fits = _is_number(value) or (isinstance(value, str) and len(value) <= MOST_TEXT)
    _require(fits, f"a value must be a number or text of at most {MOST_TEXT} characters")
    return Condition(column, operator, value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 2**63 and math.isfinite(value)


def _require(condition: bool, what: str):
    if not condition:
        raise BadRequest(what)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number")


def printable(row: dict) -> dict:
    """Metadata as JSON has it: no bytes, dates as text, and numbers that are not finite as text too."""
    return {name: value if _is_plain(value) else str(value) for name, value in row.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int | type(None))
