"""The map of the code: who may import whom, and how large a file gets."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from clip_jax.config import TrainConfig
from clip_jax.config_io import read_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clip_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports from the rows above its own, and from its own package. The longest name wins.
LAYERS = (
    (
        "config",
        "hardware",
        "numerics",
        "registry",
        "redaction",
        "storage",
        "distributed.multihost",
        "models.tower",
    ),
    ("config_io",),
    ("models", "losses", "data", "sharding"),
    ("runs",),
    ("evaluation", "weights"),
    ("load", "distributed"),
    ("collection",),
    ("search",),
    ("curation",),
    ("training",),
    ("planning",),
    ("cli",),
)
HEAVY = ("tensorflow", "torch", "tensorflow_datasets", "matplotlib", "pandas", "pyarrow")
HEAVY += ("orbax", "ftfy")  # a quarter of the time that importing the package would take
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 70


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


KNOWN = {f"clip_jax.{name_of(module)}" for module in MODULES}


def row_of(name: str) -> int:
    found = [
        (len(prefix), row)
        for row, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert found, f"clip_jax.{name} has no place in LAYERS"
    return max(found)[1]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> set[str]:
    """Names of modules of ours that a file imports, without `clip_jax.`."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in KNOWN else node.module for name in names}
    ours = {name.removeprefix("clip_jax.") for name in found if name.startswith("clip_jax.")}
    return ours


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_above(path):
    name = name_of(path)
    if not name:
        return  # the package re-exports from everywhere
    own = name.split(".")[0]
    for other in imports(path):
        same_package = other.split(".")[0] == own
        if row_of(other) == row_of(name) and row_of(name) == 2:
            assert same_package, f"{name} imports {other}, which is beside it"
        assert row_of(other) <= row_of(name), f"{name} imports {other}, which is below it"


def test_no_module_imports_itself_through_others():
    graph = {name_of(path): imports(path) for path in MODULES if name_of(path)}
    done, open_names = set(), []

    def visit(name):
        assert name not in open_names, f"a cycle: {' -> '.join([*open_names, name])}"
        if name in done or name not in graph:
            return
        open_names.append(name)
        for other in graph[name]:
            visit(other)
        open_names.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_one_idea(path):
    tree = parsed(path)
    assert ast.get_docstring(tree), "a module says in one line what it is"
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            doc = ast.get_docstring(node) or ""
            assert lines - len(doc.splitlines()) <= MOST_LINES_OF_A_FUNCTION, node.name


def test_no_file_has_a_name_that_says_nothing():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in MODULES if path.stem in vague]


def test_importing_the_package_loads_no_heavy_library():
    code = f"import sys, clip_jax; print([m for m in {HEAVY!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_a_config_loads_and_says_what_it_is(path):
    assert isinstance(read_config(str(path)), TrainConfig)
    assert ast.get_docstring(ast.parse(path.read_text()))
