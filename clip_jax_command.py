"""The `clip-jax` command: what Python or JAX refuse while they load is one line, too.

It lies beside the package, because importing anything of the package imports JAX.
"""

import sys


def main() -> int:
    """Run `clip_jax.cli.main`."""
    try:
        from clip_jax.cli.main import main as run
    except (ValueError, RuntimeError, ImportError) as error:
        if "--traceback" in sys.argv:
            raise
        text = " ".join(str(error).split())
        if isinstance(error, ValueError):
            text += ". JAX reads its variables when it starts: unset or correct it"
        print(f"clip-jax: {text} (--traceback shows where)", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
