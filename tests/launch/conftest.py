"""Stand-ins for programs that are not here: they note what they are asked and say what they are told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

RECORDER = """#!{python} -S
import json, os, re, sys
folder, name = {folder!r}, {name!r}
text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
with open(f"{{folder}}/calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
with open(f"{{folder}}/stdin", "a") as file:
    file.write(text)
path = f"{{folder}}/{{name}}.answers"
answers = json.load(open(path)) if os.path.exists(path) else []
for answer in answers:
    if re.search(answer[0], " ".join(sys.argv[1:])) and len(answer) > 1:
        output, code = answer.pop(1) if len(answer) > 2 else answer[1]
        json.dump(answers, open(path, "w"))
        (sys.stderr if code else sys.stdout).write(output)
        sys.exit(code)
"""


class Place:
    """A folder whose programs come first on PATH, and in which `launch` starts our scripts."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()

    def stand_in(self, name: str, *answers: list):
        """A program that notes its calls.

        Args:
          name: of the program.
          answers: [pattern of its arguments, (output, exit code), ...]; one after the other at each
            call that matches, the last one again and again. No output and 0 where none matches.
            With another exit code than 0 the output is an error's.
        """
        text = RECORDER.format(python=sys.executable, folder=str(self.folder), name=name)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)
        (self.folder / f"{name}.answers").write_text(json.dumps(answers))

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "CLIP_JAX_NOTES": str(self.folder / "notes")}

    def launch(self, script: str, *arguments: str, stdin: str = "", **variables: str):
        """What the script printed, and its exit code; it was given its arguments as they are."""
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            input=stdin,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every call of a stand-in, from the first on; forgotten by reading."""
        path = self.folder / "calls"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        path.unlink()
        return [json.loads(line) for line in lines]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)
