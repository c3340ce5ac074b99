"""A model at another image size or context length, and at the sizes that a file has."""

import dataclasses
import logging
from collections.abc import Mapping

from clip_jax.config import ModelConfig

log = logging.getLogger(__name__)


def paths(config: ModelConfig) -> dict[str, str]:
    """Where the towers of an architecture that learn their positions keep them."""
    return {
        name: f"params/{name}/{tower.positions_path}"
        for name, tower in config.towers.items()
        if tower.positions_path is not None
    }


def as_stored(config: ModelConfig, positions: Mapping[str, int]) -> ModelConfig:
    """The architecture with the numbers of positions that a file has, by tower.

    Raises:
      ValueError: the image positions are no square grid.
    """
    try:
        found = {name: config.towers[name].at_positions(count) for name, count in positions.items()}
    except ValueError as error:
        raise ValueError(f"the positions do not fit {config.name}: {error}") from error
    return dataclasses.replace(
        config, vision=found.get("image", config.vision), text=found.get("text", config.text)
    )


def resize(variables: dict, old: ModelConfig, new: ModelConfig) -> dict:
    """Variables of `new` from those of `old`, which differs in its towers' free fields alone.

    Image positions are resized as an image, bicubic and antialiased; text positions linearly.
    These are open_clip's choices.
    """
    params = dict(variables["params"])
    for name, tower in new.towers.items():
        stored = params[name]
        params[name] = tower.resize(stored, old.towers[name])
        if params[name] is not stored:
            log.warning(
                "the positions of the %s tower are resized: %s has others than the file",
                *(name, new.name),
            )
    return variables | {"params": params}
