"""The command `clip-jax settings`: a reference of all settings, made from the dataclasses."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import tyro

from clip_jax.config import TrainConfig
from clip_jax.registry import Settings, hints, in_words

HEAD = """# Settings

What `clip-jax train` takes as `--NAME VALUE`, such as `--optimizer.warmup-steps 500` (`-` and `_` are the same in a name; a switch is
`--logging.progress` or `--logging.no-progress`), and what a config file returns as the fields of a `TrainConfig`. A value out of range is
refused by name before any device is used. `clip-jax settings > docs/settings.md` writes this page.
"""


class Row(NamedTuple):
    name: str
    default: str
    allowed: str
    meaning: str


def settings(args: list[str]) -> int:
    """List all settings with their defaults, what is allowed and what they mean."""

    def show(match: Annotated[str, tyro.conf.Positional] = "") -> int:
        """List all settings, as Markdown.

        Args:
            match: only settings with this in their names.
        """
        print("\n".join(page(match)))
        return 0

    return tyro.cli(show, args=args, prog="clip-jax settings")


def page(match: str = "") -> Iterator[str]:
    """The lines of the reference."""
    yield HEAD
    for kind, rows in groups(TrainConfig):
        shown = [row for row in rows if match in row.name]
        if shown:
            yield f"## {kind.group.removesuffix('.') or 'The run'}\n\n{inspect.getdoc(kind)}\n"
            yield "| setting | default | allowed | meaning |\n|---|---|---|---|"
            yield from (f"| `{row.name}` | {' | '.join(row[1:])} |" for row in shown)
            yield ""


def groups(kind: type[Settings]) -> Iterator[tuple[type[Settings], list[Row]]]:
    """Each group of settings with its rows, those inside it after it."""
    comments, inner, rows = _comments(kind), [], []
    default = kind()
    for field in dataclasses.fields(kind):
        what, value = hints(kind)[field.name], getattr(default, field.name)
        if isinstance(value, Settings):
            inner.append(type(value))
            continue
        meaning = comments.get(field.name, "").replace("|", "\\|")
        rows.append(Row(kind.group + field.name, f"`{value!r}`", in_words(what), meaning))
    yield kind, rows
    for each in inner:
        yield from groups(each)


def _comments(kind: type) -> dict[str, str]:
    """What stands beside each field in the code, or else in the lines above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    texts = {number: token.string.lstrip("# ") for number, token in found.items()}
    alone = {number for number, token in found.items() if token.line.lstrip().startswith("#")}
    comments = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        beside = range(node.lineno, node.end_lineno + 1)
        above = node.lineno
        while above - 1 in alone:
            above -= 1
        lines = [n for n in beside if n in texts] or range(above, node.lineno)
        comments[node.target.id] = " ".join(texts[n] for n in lines)
    return comments
