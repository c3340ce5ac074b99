"""What we set in Orbax, for this process: how it shares the writing, and what it prints of a failure."""

import logging
import sys

import jax
import orbax.checkpoint as ocp

SHARED_BYTES = 2**20  # a slice that a replica writes has at least so many


def set_up_orbax():
    """As often as it is called, once."""
    share_large_arrays_alone()
    hide_echoes()


def share_large_arrays_alone():
    """Let one replica write an array that is small, and each its slice of a large one.

    Orbax slices every array, and compiles a program for each shape of a slice: that was 4 of the
    4.5 s of a small run's first save.
    """
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED_BYTES)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def hide_echoes():
    """Of a save that fails show the failure alone.

    At the first array that cannot be written orbax closes its event loop. Each of the others then
    prints a traceback about that, or about its own failure that nobody asked for: hundreds for one
    full disk.
    """
    show = sys.unraisablehook
    if getattr(show, "hides_echoes", False):
        return

    def hook(unraisable):
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            show(unraisable)

    hook.hides_echoes = True
    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_no_echo)


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Not the failure of a task of orbax that was never asked for."""
    if not (record.exc_info and "exception was never retrieved" in record.getMessage()):
        return True
    place = record.exc_info[2]
    while place is not None:
        if place.tb_frame.f_globals.get("__name__", "").startswith("orbax."):
            return False
        place = place.tb_next
    return True
