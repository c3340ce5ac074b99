"""Parity tests need the reference libraries; without them they are not collected."""

import importlib.util
import sys
from pathlib import Path

NEEDED = ("torch", "open_clip", "transformers")
if all(importlib.util.find_spec(name) for name in NEEDED):
    collect_ignore_glob = []
    if not importlib.util.find_spec("clip_benchmark"):
        collect_ignore_glob = ["test_benchmark_parity.py"]
    # The measurements are those of benchmarks/parity.py, on smaller models.
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
else:
    collect_ignore_glob = ["test_*.py"]
