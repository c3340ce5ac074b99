"""Whether two runs ended in the same bits: RUN RUN STEP. Prints how much was compared."""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp


def state(run: Path, step: int) -> dict:
    """Parameters, moments and counters of a checkpoint, as NumPy's arrays."""
    path = (run / "checkpoints" / str(step) / "state").resolve()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))


def main(one: str, other: str, step: str) -> int:
    ours, theirs = (state(Path(run), int(step)) for run in (one, other))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    arrays, size, differ = 0, 0, []
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs)):
        arrays, size = arrays + 1, size + np.asarray(a).nbytes
        if np.asarray(a).tobytes() != np.asarray(b).tobytes():
            differ.append(jax.tree_util.keystr(path))
    print(f"step {step}: {arrays} arrays, {size:,} bytes, {len(differ)} differ {differ[:5]}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
