"""The `clip-jax` command: one file a group of commands."""

import os


def _fill_closed_streams():
    """Put /dev/null where standard input, output or error is closed.

    The next file that is opened would have its number, and get what libraries of C++ print there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


_fill_closed_streams()  # before anything else is imported, which may open files
