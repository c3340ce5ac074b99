"""The order of training that the settings ask for: global, or in blocks where sources have them."""

from collections.abc import Sequence

import numpy as np

from clip_jax.config import DataConfig
from clip_jax.data.block_order import BlockOrder, Rows
from clip_jax.data.samples import Source
from clip_jax.data.shuffle import Mixture

GLOBAL = "global"  # what a run that says nothing of its order was trained in


class GlobalOrder:
    """A shuffle of all samples. Its windows are whole sources."""

    def __init__(self, lengths: Sequence[int], weights: Sequence[float] | None, *, seed: int):
        self._mixture, self._seed = Mixture(lengths, weights), seed

    def __str__(self) -> str:
        return GLOBAL

    def rows(self, positions_B: np.ndarray) -> Rows:
        """What stands at each position of training."""
        source_B, index_B, epoch_B = self._mixture.rows(positions_B, self._seed)
        return Rows(source_B, index_B, epoch_B, source_B, np.zeros_like(source_B))

    def another(self, stream: int, epoch: int, window: int, draw: int) -> tuple[int, int]:
        """Source and index of some sample of the same source, so that mixtures keep proportions."""
        return stream, draw % self._mixture.lengths[stream]


def make_order(
    sources: Sequence[Source], cfg: DataConfig, *, seed: int
) -> GlobalOrder | BlockOrder:
    """The order of `data.shuffle`.

    Raises:
      ValueError: it is to be in blocks, and a source cannot be read in blocks.
    """
    if not _in_blocks(sources, cfg):
        return GlobalOrder([len(source) for source in sources], cfg.weights, seed=seed)
    blocks = [getattr(source, "blocks", None) for source in sources]
    without = [source.name for source, one in zip(sources, blocks) if one is None]
    if without:
        raise ValueError(
            f"data.shuffle=block: {', '.join(without)} cannot be read in blocks; tar, records and "
            "parquet can. Use data.shuffle=global, or convert it with `clip-jax data convert`"
        )
    return BlockOrder(
        blocks,
        cfg.weights,
        batch_size=cfg.batch_size,
        window=cfg.shuffle_window_mb * 1e6,
        seed=seed,
    )


def describe(sources: Sequence[Source], cfg: DataConfig) -> str:
    """The order in words, equal for equal orders of the same data and settings."""
    return str(make_order(sources, cfg, seed=0)) if _in_blocks(sources, cfg) else GLOBAL


def _in_blocks(sources: Sequence[Source], cfg: DataConfig) -> bool:
    """Whether the order is in blocks; with auto where all sources have blocks and one is far away."""
    if cfg.shuffle != "auto":
        return cfg.shuffle == "block"
    if not any(getattr(source, "remote", False) for source in sources):
        return False
    return all(getattr(source, "blocks", None) is not None for source in sources)
