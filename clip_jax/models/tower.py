"""All that the rest of the code asks of a tower, or of a head beside the towers: the base classes of their configs."""

import abc
import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from clip_jax.registry import Settings, resolve

if TYPE_CHECKING:  # settings are read where JAX is not loaded
    import jax
    from flax import linen as nn


# The names that files keep the towers of this tree under, and where their configs stand.
TOWERS = {
    "vision_transformer": "clip_jax.models.towers.vision_transformer:VisionTransformerConfig",
    "resnet": "clip_jax.models.towers.resnet:ResNetConfig",
    "text_transformer": "clip_jax.models.towers.text_transformer:TextConfig",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a tower computes, which its weights do not depend on. A tower may leave some of it out."""

    dtype: Any  # of the matrix products
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    constrain: Callable[["jax.Array"], "jax.Array"] = lambda x: x  # on activations (B, ...)


class Tower(Settings, abc.ABC):
    """The config of one kind of tower, a frozen dataclass.

    Its fields are the settings. Its attributes and methods, which a subclass defines where it
    differs, are what other code asks of a tower: nobody asks for its class. `module`, `flops` and
    the fields of `ImageTower` or `TextTower` are all that a new one needs.
    """

    # Blocks of the tower's `models.layers.Transformer`, which it then names "transformer". 0: it
    # has no such stack, and layer decay and unlocked blocks are refused.
    depth: int = 0
    # Names of its parameters above those blocks; all others are below.
    above_blocks: ClassVar[tuple[str, ...]] = ()
    # (regular expression, axis) of parameters by their path within the tower: the axis that is
    # split over "fsdp" first. `sharding.parts_of` chooses for what no row names.
    sharding_rows: ClassVar[tuple[tuple[str, int], ...]] = ()
    # Fields that may change under the same weights, which `resize` adapts where needed.
    free_fields: ClassVar[tuple[str, ...]] = ()
    # Path of the learned positions within the tower's parameters, for readers of released weights.
    positions_path: ClassVar[str | None] = None
    # Share of what JAX keeps for the backward pass that XLA does not compute again.
    kept_share: ClassVar[float] = 1.0

    @property
    def fixed_embed_dim(self) -> int | None:
        """The only `embed_dim` that the tower can have; None: any."""
        return None

    @abc.abstractmethod
    def module(self, embed_dim: int, compute: Compute) -> "nn.Module":
        """The Linen module; `module(inputs, train=...)` returns (embedding, tokens).

        The embedding is (B, embed_dim), not yet of unit length; the tokens, (B, L, D), are what it
        is pooled from, for losses on positions. Variables are "params" and "batch_stats".
        """

    @abc.abstractmethod
    def flops(self, embed_dim: int, *, train: bool = False) -> float:
        """Floating-point operations of the matrix products and convolutions of one sample."""

    def parameter_count(self, embed_dim: int) -> int | None:
        """How many parameters there are; None: they are counted from the module's shapes."""
        del embed_dim

    def matrices_of(self, name: str) -> int:
        """How many matrices the kernel at a path within the tower holds side by side in its outputs.

        For optimizers of whole matrices, such as Muon: those of attention are one for each head.
        """
        del name
        return 1

    def resize(self, params: dict, old: Self) -> dict:
        """Parameters of this config from those of `old`, which differs in `free_fields` alone."""
        del old
        return params

    def at_positions(self, count: int) -> Self:
        """The config with `count` rows at `positions_path`.

        Raises:
          ValueError: no size of this tower has so many.
        """
        raise ValueError(f"{type(self).__name__} has no table of positions")

    def fields(self) -> dict[str, Any]:
        """The settings by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def arithmetic(self) -> dict[str, Any]:
        """What the meaning of its weights depends on, of which their shapes need not tell."""
        fixed = {k: v for k, v in self.fields().items() if k not in self.free_fields}
        return {"tower": name_of(self), **fixed}

    def with_known(self, **changes: Any) -> Self:
        """The config with those of the changes whose fields it has."""
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if k in self.fields()})


class ImageTower(Tower):
    """Takes normalised images (B, image_size, image_size, 3), in float32."""

    image_size: int  # pixels on each side
    free_fields = ("image_size",)


class TextTower(Tower):
    """Takes token ids (B, L), int32, L at most `context_length`."""

    context_length: int  # tokens
    vocab_size: int
    free_fields = ("context_length", "vocab_size")

    @property
    def reads_largest_id(self) -> bool:
        """Whether the embedding is read at the largest id, which must then be the end token's."""
        return False

    def read_length(self, tokens_BL: np.ndarray) -> int:
        """How many tokens of each text the embedding depends on; what follows can be cut off."""
        return tokens_BL.shape[1]

    def with_vocabulary(self, vocab_size: int, end_id: int) -> Self:
        """The config for a tokenizer that closes every text with `end_id`."""
        del end_id
        return self.with_known(vocab_size=vocab_size)


class Head(Settings, abc.ABC):
    """The config of a part beside the towers that a term of the loss needs: a decoder, a teacher.

    A frozen dataclass, which the term's `Loss` record names. Only training computes it: what
    `clip_jax.load` gives has the towers alone.
    """

    name: str  # of its parameters, beside "image" and "text"
    # Not trained. `weights` says what it is.
    frozen: ClassVar[bool] = False
    # As a tower's.
    sharding_rows: ClassVar[tuple[tuple[str, int], ...]] = ()

    @abc.abstractmethod
    def module(self, model: Any, compute: Compute) -> "nn.Module":
        """The Linen module, beside the towers of `model`, a `ModelConfig`.

        `module(outputs, images, tokens, train=...)` gets the towers' `Outputs`, with "image_tokens"
        and "text_tokens", and the batch as it is (uint8 images). It returns arrays of floating-point
        numbers (B, ...) by name, which join `Outputs.extra`.
        """

    def weights(self) -> dict | None:
        """Its variables, such as {"params": ...}, as NumPy's arrays; None: the module draws them."""

    def flops(self, model: Any) -> float:
        """Floating-point operations of the forward pass of one pair, as a tower's `flops`."""
        del model
        return 0.0


def name_of(tower: Tower) -> str:
    """A tower's name in `TOWERS`, or `package.module:NAME` of its config's class.

    Raises:
      ValueError: the class cannot be imported under that name, so that no file could name it.
    """
    kind = type(tower)
    path = f"{kind.__module__}:{kind.__qualname__}"
    for name, known in TOWERS.items():
        if known == path:
            return name
    module = sys.modules.get(kind.__module__)
    if kind.__module__ == "__main__" or getattr(module, kind.__qualname__, None) is not kind:
        raise ValueError(
            f"the tower {path} cannot be imported under its name: define the class at the top of "
            "a module on PYTHONPATH"
        )
    return path


def kind_of(name: str) -> type[Tower]:
    """The class of a tower's config by the name that `name_of` gave."""
    found = resolve("tower", TOWERS.get(name, name), TOWERS)
    if not (isinstance(found, type) and issubclass(found, Tower)):
        raise ValueError(f"tower={name!r} is {found!r}, not a class of clip_jax.models.tower.Tower")
    return found
