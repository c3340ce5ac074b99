"""The image and text towers, one file each, and the names that files keep them under."""

from clip_jax import registry
from clip_jax.models.tower import Tower
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig

TOWERS: dict[str, type[Tower]] = {
    "vision_transformer": VisionTransformerConfig,
    "resnet": ResNetConfig,
    "text_transformer": TextConfig,
}


def name_of(tower: Tower) -> str:
    """A tower's name in `TOWERS`, or `package.module:NAME` of its config's class.

    Raises:
      ValueError: the class cannot be imported under that name, so that no file could name it.
    """
    kind = type(tower)
    for name, known in TOWERS.items():
        if known is kind:
            return name
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not registry.is_import_path(name) or registry.resolve("tower", name, TOWERS) is not kind:
        raise ValueError(
            f"the tower {name} cannot be imported under its name: define the class at the top of "
            "a module on PYTHONPATH"
        )
    return name


def kind_of(name: str) -> type[Tower]:
    """The class of a tower's config by the name that `name_of` gave."""
    found = registry.resolve("tower", name, TOWERS)
    if not (isinstance(found, type) and issubclass(found, Tower)):
        raise ValueError(f"tower={name!r} is {found!r}, not a class of clip_jax.models.tower.Tower")
    return found
