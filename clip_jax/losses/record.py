"""What the rest of the code must know of a loss: its function, and what that reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clip_jax.models.tower import Head


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss that can be a term of the objective.

    Attributes:
      name: it is logged as loss/NAME.
      function: of `Outputs` and the batch; it returns the scalar loss of the whole batch, or a pair
        of that and further scalars to log by name. The arrays are those of the whole batch, which
        the compiler partitions over the devices, unless `sharded`.
      sharded: the function is called inside `jax.shard_map` with the device's rows and with
        `axis_name`, `distributed` and `tile`, as `softmax_loss` takes them. It returns the same on
        every device.
      scalars: the trained scalars that it reads of `Outputs`, with the values of the parameters
        that they start from: "logit_scale" (the natural logarithm of the multiplier), "logit_bias".
      extra: the entries of `Outputs.extra` that it reads.
      heads: parts of the model beside the towers that make some of these entries; they are trained
        and saved with the towers, unless they are frozen.
      batch: the entries of the batch that it reads, such as "tokens". A loss with none of these
        and none in `extra` needs embeddings alone, so that an evaluation can compute it.
      random_loss: its value for a batch of so many pairs whose similarities are all equal.
      ring_bytes_per_pair: what a device keeps of each of its pairs for the gradient, where texts
        travel in a ring without tiles.
    """

    name: str
    function: Callable
    sharded: bool = False
    scalars: Mapping[str, float] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ()
    batch: tuple[str, ...] = ()
    random_loss: Callable[[int], float] | None = None
    ring_bytes_per_pair: float = 0.0

    def __post_init__(self):
        if unknown := set(self.scalars) - {"logit_scale", "logit_bias"}:
            raise ValueError(
                f"the loss {self.name} needs {', '.join(sorted(unknown))}: the trained scalars of a "
                "model are logit_scale and logit_bias"
            )

    @property
    def needs_embeddings_alone(self) -> bool:
        return not (self.extra or self.batch)
