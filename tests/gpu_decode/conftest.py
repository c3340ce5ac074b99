"""Tests of DALI's own operators, on its CPU device: they need no GPU, and are collected where DALI is installed."""

import importlib.util

has_dali = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
collect_ignore_glob = [] if has_dali else ["test_*.py"]
