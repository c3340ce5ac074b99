"""`python -m clip_jax.cli`."""

import sys

from clip_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
