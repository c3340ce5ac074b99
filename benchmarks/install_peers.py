"""Add open_clip and what it needs of torchvision to the environment that runs this: `make parity` does.

    python benchmarks/install_peers.py

torchvision has no CPU build beside the CPU build of torch on PyPI, and its CUDA build draws in
gigabytes. So it is installed without its dependencies, and if its compiled operators are then
missing, as on a CPU, their registration is passed over: open_clip uses none of them.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

# Pillow 13 resizes with its passes in the order that ours are in; apache-beam, for other tests, holds
# it back at 12.
PEERS = (
    "clip-benchmark==1.6.2",
    "open_clip_torch==3.3.0",
    "pillow==13.0.0",
    "timm==1.0.28",
    "torchvision==0.28.0",
)
REGISTRATION = re.compile(r"@torch\.library\.register_fake\(\"torchvision::\w+\"\)")


def main():
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *PEERS]
    subprocess.run(pip, check=True)
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
        spec = importlib.util.find_spec("torchvision")
        assert spec is not None and spec.origin is not None
        file = Path(spec.origin).with_name("_meta_registrations.py")
        file.write_text(REGISTRATION.sub("@(lambda function: function)", file.read_text()))
    subprocess.run([sys.executable, "-c", "import open_clip, torchvision"], check=True)


if __name__ == "__main__":
    main()
