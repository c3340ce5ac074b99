"""Where in the order of the samples a start of a run begins: the state of the data is one number."""

import dataclasses
import logging

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Position:
    """The samples that were taken before a step, which says what every later step takes.

    Steps alone would not do: a run may resume with another batch size.
    """

    step: int
    samples: int
    batch_size: int

    def samples_after(self, step: int) -> int:
        """Samples taken by all steps up to this one."""
        return self.samples + (step - self.step) * self.batch_size


def resumed_position(step: int, metadata: dict, batch_size: int) -> Position:
    """Where the run of a checkpoint goes on, and a warning if its batches have another size.

    Args:
      step: of the checkpoint.
      metadata: saved with it; older ones have no number of samples, and one batch size.
      batch_size: of the steps to come.
    """
    before = metadata.get("config", {}).get("data", {}).get("batch_size", batch_size)
    samples = int(metadata.get("samples", step * before))
    if before != batch_size:
        log.warning(
            "Resuming with batches of %d samples instead of %d: %d samples were taken, step %d takes "
            "the %d after them",
            *(batch_size, before, samples, step + 1, batch_size),
        )
    return Position(step, samples, batch_size)
