"""Pictures show what captions say."""

import numpy as np
import pytest

from clip_jax.data.sources import scenes


def scene_of(color, shape, *, x=0.5, y=0.5, radius=0.3):
    figure = scenes.Figure(color, shape, "large", x, y, radius, 0.0)
    return scenes.Scene((figure,), "black", 0)


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("color", ["red", "yellow"])
def test_the_object_has_its_color_and_stays_inside_its_radius(color, shape):
    image = scenes.render(scene_of(color, shape), np.random.default_rng(0), 64).astype(int)
    shown = abs(image - scenes.COLORS[color]).max(-1) < 30
    assert 0.05 < shown.mean() < np.pi * 0.3**2 + 0.02
    rows, columns = np.nonzero(abs(image - scenes.BACKGROUNDS["black"]).max(-1) > 30)
    assert np.hypot(rows - 31.5, columns - 31.5).max() < 64 * 0.3 * 1.42 + 1


def test_edges_are_smooth():
    image = scenes.render(scene_of("red", "circle"), np.random.default_rng(0), 64)[..., 0]
    between = (image > 50) & (image < 170)
    assert 60 < between.sum() < 250  # the circle is about 120 pixels around


def test_all_classes_look_different():
    pictures = {
        pair: scenes.render(scene_of(*pair), np.random.default_rng(0), 64).astype(int)
        for pair in scenes.PAIRS
    }
    for pair, image in pictures.items():
        others = [abs(image - other).mean() for key, other in pictures.items() if key != pair]
        assert min(others) > 2


def test_the_same_generator_makes_the_same_scene_and_words():
    def make():
        rng = np.random.default_rng(3)
        scene = scenes.random_scene(rng, scenes.PAIRS, two=True)
        return scenes.render(scene, rng, 64).tobytes(), scenes.random_caption(scene, rng)

    assert make() == make()


def test_full_captions_name_every_object():
    rng = np.random.default_rng(0)
    for number in range(300):
        scene = scenes.random_scene(rng, scenes.PAIRS, two=number % 2 == 0)
        caption = scenes.full_caption(scene, rng)
        for figure in scene.figures:
            assert any(
                f"{figure.color} {word}" in caption for word in scenes.SYNONYMS[figure.shape]
            )
        assert any(word in caption for word in (scene.background, "grey"))


def test_two_objects_stand_as_the_caption_says():
    rng = np.random.default_rng(1)
    relations = {
        " left of ": lambda a, b: a.x < b.x,
        " right of ": lambda a, b: a.x > b.x,
        " above ": lambda a, b: a.y < b.y,
        " below ": lambda a, b: a.y > b.y,
    }
    checked = set()
    for _ in range(400):
        scene = scenes.random_scene(rng, scenes.PAIRS, two=True)
        caption = scenes.full_caption(scene, rng)
        for words, holds in relations.items():
            if words in caption:
                checked.add(words)
                first, second = sorted(
                    scene.figures,
                    key=lambda f: min(
                        caption.find(f"{f.color} {word}") % 1000
                        for word in scenes.SYNONYMS[f.shape]
                    ),
                )
                assert holds(first, second), caption
    assert checked == set(relations)


def test_two_objects_do_not_touch():
    rng = np.random.default_rng(2)
    for _ in range(300):
        first, second = scenes.random_scene(rng, scenes.PAIRS, two=True).figures
        apart = max(abs(first.x - second.x), abs(first.y - second.y))
        assert apart > first.radius * 0.85 + second.radius * 0.85


def test_captions_vary_and_leave_things_out():
    rng = np.random.default_rng(0)
    scene = scenes.random_scene(rng, [("orange", "star")])
    captions = {scenes.random_caption(scene, rng) for _ in range(200)}
    assert len(captions) > 50
    assert any(scene.background not in caption and "grey" not in caption for caption in captions)
    assert not any("a orange" in caption for caption in captions)
