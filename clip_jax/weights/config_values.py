"""Values out of another library's JSON, each checked as it is taken; keys that nobody takes are refused."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from clip_jax.storage.json_text import parse_json

Value = TypeVar("Value")
# Beyond what any model has; without them a wrong number takes all memory before it is compared with the file.
MOST_LAYERS = 1000
MOST_PIXELS = 10_000


def read_json(path: Path) -> "Section":
    """The object that a JSON file holds.

    Raises:
      ValueError: it is no JSON, or another kind of value.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    return Section(content, str(path))


class Section:
    """An object of a JSON file. A key that is null counts as absent.

    Attributes:
      where: what errors call the object: its file, and its key there.
    """

    def __init__(self, content: Any, where: str):
        if not isinstance(content, dict):
            raise ValueError(f"{where} is {content!r:.40}, where an object is needed")
        self.where = where
        self._content = {key: value for key, value in content.items() if value is not None}
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._content

    @property
    def content(self) -> dict[str, Any]:
        return dict(self._content)

    def get(self, key: str, default: Any = None) -> Any:
        self._taken.add(key)
        return self._content.get(key, default)

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Section":
        """The same over a library's default values."""
        return Section({**defaults, **self._content}, self.where)

    def section(self, key: str) -> "Section":
        """A nested object; an empty one if it is absent."""
        return Section(self.get(key, {}), f"{self.where}: {key}")

    def error(self, key: str, wanted: str) -> ValueError:
        if key not in self._content:
            return ValueError(f"{self.where} has no {key}: {wanted} is needed")
        return ValueError(f"{self.where}: {key} is {self._content[key]!r:.60}; {wanted} is needed")

    def integer(
        self, key: str, default: int | None = None, most: int = 10**7, *, least: int = 1
    ) -> int:
        """A whole number, at least `least` and at most `most`."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.error(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def choice(self, key: str, default: Any, table: Mapping[Any, Value]) -> Value:
        """What a table has for a value."""
        value = self.get(key, default)
        if isinstance(value, list | dict) or value not in table:
            raise self.error(key, f"one of {', '.join(map(repr, table))}")
        return table[value]

    def square(self, key: str, default: Any = None) -> int:
        """Pixels on each side: a whole number, two equal ones, or {"height": n, "width": n}."""
        value = self.get(key, default)
        if isinstance(value, dict) and set(value) == {"height", "width"}:
            value = [value["height"], value["width"]]
        sides = value if isinstance(value, list | tuple) else [value]
        whole = all(
            isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MOST_PIXELS for n in sides
        )
        if not whole or len(sides) not in (1, 2) or len(set(sides)) != 1:
            raise self.error(key, "a whole number of pixels, the same on both sides,")
        return sides[0]

    def triple(self, key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
        """Three finite numbers, one for each channel."""
        value = self.get(key, default)
        values = value if isinstance(value, list | tuple) else [value]
        fit = all(isinstance(n, int | float) and not isinstance(n, bool) for n in values)
        if not fit or len(values) != 3 or not all(map(math.isfinite, values)):
            raise self.error(key, "three finite numbers")
        return tuple(map(float, values))

    def refuse_others(
        self, off: Mapping[str, Any], ignored: Iterable[str] = (), *, false_is_off: bool = True
    ):
        """Refuse keys that were not taken: those of `off` unless they have the value there.

        A key that is false switches something off, unless `false_is_off` says otherwise.

        Raises:
          ValueError: naming the key and its value.
        """
        for key in sorted(set(self._content) - self._taken - set(ignored)):
            value = self._content[key]
            if (key in off and value == off[key]) or (value is False and false_is_off):
                continue
            raise ValueError(f"{self.where}: {key} is {value!r:.60}, which is not supported")
