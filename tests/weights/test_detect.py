"""Tests of finding an architecture from a file's shapes."""

import pytest

from clip_jax.models.architectures import model_config
from clip_jax.weights import big_vision, open_clip
from clip_jax.weights.detect import (
    closest,
    figures_of_config,
    figures_of_file,
    figures_of_npz,
    find_architecture,
)
from clip_jax.weights.mapping import _whole_shape, abstract_variables

NAMES = ["RN50x4", "ViT-B-32", "ViT-L-14-336", "ViT-L-14-CLIPA", "ViT-B-16-SigLIP-384"]


def shapes_of(name, links=open_clip.links):
    config = model_config(name)
    ours = abstract_variables(config)
    return {link.theirs: _whole_shape(link, ours[link.ours].shape) for link in links(config)}


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_is_known_by_its_shapes(name):
    assert find_architecture(figures_of_file(shapes_of(name)), source="a file") == name


@pytest.mark.parametrize("name", [*NAMES, "ViT-SO400M-16-SigLIP-i18n-256", "ViT-L-14-worldwide"])
def test_an_architecture_is_known_with_its_text_tower_under_its_own_name(name):
    shapes = shapes_of(name, lambda config: open_clip.links(config, custom_text=True))
    assert find_architecture(figures_of_file(shapes), source="a file") == name


def test_big_visions_files_are_known_too():
    shapes = shapes_of("ViT-B-16-SigLIP", lambda config: big_vision.links(config, {}))
    assert find_architecture(figures_of_npz(shapes), source="a file") == "ViT-B-16-SigLIP"


def test_openais_files_get_its_activation():
    figures = figures_of_file(shapes_of("ViT-B-32"))
    assert find_architecture(figures, source="x", quick_gelu=True) == "ViT-B-32-quickgelu"


def test_an_unknown_one_is_answered_with_the_closest_and_the_difference():
    figures = figures_of_config(model_config("ViT-B-32")) | {"text depth": 13}
    assert closest(figures)[0] == "ViT-B-32"
    with pytest.raises(ValueError, match=r"a file.*ViT-B-32.*text depth 13 instead of 12"):
        find_architecture(figures, source="a file")


def test_a_foreign_file_has_no_figures():
    with pytest.raises(ValueError, match="no known architecture"):
        find_architecture(figures_of_file({"layer.weight": (3, 4)}), source="a file")
    for shape in ((), (-1,), (0, -3)):
        names = big_vision.links(model_config("ViT-B-16-SigLIP"), {})
        figures = figures_of_npz({link.theirs: shape for link in names})
        with pytest.raises(ValueError, match="no known architecture"):
            find_architecture(figures, source="a file")
