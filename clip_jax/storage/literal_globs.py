"""Mends epath's globs, for which a folder's own name was a part of the pattern; imported for that."""

import glob

from etils.epath import gpath


def _glob_in_literal_folder(self, pattern: str):
    """`epath.Path.glob`, but only `pattern` may hold wildcards, as in `pathlib`.

    epath takes the folder's own name for a part of the pattern. Orbax merges a checkpoint's files
    by such a glob, so a checkpoint below a folder called run[1] could never be read.
    """
    if "**" in pattern:
        raise NotImplementedError(f"{pattern!r}: ** is not supported")
    for found in self._backend.glob(self._PATH.join(glob.escape(self._path_str), pattern)):
        yield self._new(found)


gpath.PosixGPath.glob = _glob_in_literal_folder
