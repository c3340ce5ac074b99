"""Draws the pictures of the `shapes` dataset and says what is on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLORS = {
    "red": (214, 32, 38),
    "orange": (247, 138, 22),
    "yellow": (246, 226, 38),
    "green": (34, 152, 62),
    "cyan": (44, 206, 222),
    "blue": (36, 66, 206),
    "purple": (128, 44, 168),
    "pink": (250, 134, 186),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SYNONYMS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "hoop"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
    "gray": ("gray", "grey"),
}
SIZES = {"small": (0.18, 0.21), "medium": (0.25, 0.28), "large": (0.32, 0.38)}  # radius / side
BACKGROUNDS = {"black": (14, 14, 16), "white": (246, 246, 244), "gray": (124, 126, 128)}
# Of these six of 48 pairs no training scene has one, so that the test tells whether color and
# shape are understood apart. No color and no shape is held out twice.
HELD_OUT = (
    ("red", "star"), ("yellow", "circle"), ("green", "ring"),
    ("blue", "triangle"), ("purple", "square"), ("orange", "cross"),
)  # fmt: skip
PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES)
CLASSES = tuple(f"{color} {shape}" for color, shape in PAIRS)
TEMPLATES = (
    "{}",
    "the {}",
    "one {}",
    "a picture of one {}",
    "this is one {}",
    "there is the {}",
)
OPENINGS = ("", "", "", "a picture of ", "an image of ", "this is ", "there is ", "i see ")


@dataclass(frozen=True)
class Figure:
    """One object. Lengths are in units of the picture's side."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float  # radians


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background."""

    figures: tuple[Figure, ...]
    background: str
    shade: int  # added to the background's grey level


def random_scene(
    rng: np.random.Generator, pairs: Sequence[tuple[str, str]], *, two: bool = False
) -> Scene:
    """A scene of one object or two, each a color and a shape out of `pairs`."""
    if two:
        figures = _two_figures(rng, pairs)
    else:
        figures = (_figure(rng, *pairs[rng.integers(len(pairs))], size=_pick(rng, tuple(SIZES))),)
    return Scene(figures, _pick(rng, tuple(BACKGROUNDS)), int(rng.integers(-9, 10)))


def _two_figures(rng, pairs) -> tuple[Figure, ...]:
    first, second = (pairs[i] for i in rng.choice(len(pairs), 2, replace=False))
    # Left and right, or above and below, with room between them: small reaches 0.21.
    across = rng.random() < 0.5
    low, high, other = rng.uniform(0.24, 0.27), rng.uniform(0.73, 0.76), rng.uniform(0.26, 0.74, 2)
    places = ((low, other[0]), (high, other[1]))
    if not across:
        places = tuple((y, x) for x, y in places)
    return tuple(
        _figure(rng, *pair, size="small", place=place)
        for pair, place in zip((first, second), places)
    )


def _figure(rng, color: str, shape: str, *, size: str, place=None) -> Figure:
    radius = rng.uniform(*SIZES[size])
    if place is None:
        place = rng.uniform(radius + 0.02, 0.98 - radius, 2)
    angle = rng.uniform(-0.2, 0.2)
    return Figure(color, shape, size, float(place[0]), float(place[1]), float(radius), float(angle))


def render(scene: Scene, rng: np.random.Generator, side: int) -> np.ndarray:
    """The picture as (side, side, 3) uint8, with edges that are smoothed over one pixel."""
    base = np.array(BACKGROUNDS[scene.background], np.float32) + scene.shade
    image_HWC = np.broadcast_to(base, (side, side, 3)).copy()
    center = (np.arange(side, dtype=np.float32) + 0.5) / side
    for figure in scene.figures:
        color = np.array(COLORS[figure.color], np.float32) + rng.uniform(-10, 10, 3)
        x_HW = np.broadcast_to(center - np.float32(figure.x), (side, side))
        y_HW = np.broadcast_to((center - np.float32(figure.y))[:, None], (side, side))
        cos, sin = np.float32(math.cos(figure.angle)), np.float32(math.sin(figure.angle))
        distance_HW = DISTANCES[figure.shape](
            cos * x_HW + sin * y_HW, cos * y_HW - sin * x_HW, np.float32(figure.radius)
        )
        alpha_HW1 = np.clip(0.5 - distance_HW * side, 0, 1)[..., None]
        image_HWC += alpha_HW1 * (color.astype(np.float32) - image_HWC)
    image_HWC += rng.standard_normal((side, side, 1), np.float32) * 2
    return np.clip(image_HWC + 0.5, 0, 255).astype(np.uint8)


# Distances to a shape's edge, negative inside; x to the right and y down from its middle.


def _circle(x_HW, y_HW, radius):
    return np.hypot(x_HW, y_HW) - radius


def _ring(x_HW, y_HW, radius):
    return np.abs(np.hypot(x_HW, y_HW) - 0.74 * radius) - 0.26 * radius


def _box(x_HW, y_HW, half_width, half_height):
    return np.maximum(np.abs(x_HW) - half_width, np.abs(y_HW) - half_height)


def _square(x_HW, y_HW, radius):
    return _box(x_HW, y_HW, 0.84 * radius, 0.84 * radius)


def _cross(x_HW, y_HW, radius):
    return np.minimum(
        _box(x_HW, y_HW, radius, 0.31 * radius), _box(x_HW, y_HW, 0.31 * radius, radius)
    )


def _triangle(x_HW, y_HW, radius):
    slanted_HW = (2 * np.abs(x_HW) - (y_HW + radius)) / math.sqrt(5)
    return np.maximum(slanted_HW, y_HW - 0.8 * radius)


def _star(x_HW, y_HW, radius):
    # Folded into one half of one of its five points, where the edge is a straight line from the
    # tip at the full radius to the notch at 0.42 of it.
    fold = 2 * math.pi / 5
    angle_HW = np.arctan2(x_HW, -y_HW)
    angle_HW = np.abs((angle_HW + fold / 2) % fold - fold / 2)
    length_HW = np.hypot(x_HW, y_HW)
    along_HW, across_HW = length_HW * np.cos(angle_HW), length_HW * np.sin(angle_HW)
    notch_x, notch_y = 0.42 * math.cos(fold / 2), 0.42 * math.sin(fold / 2)
    edge = math.hypot(1 - notch_x, notch_y)
    return ((along_HW - radius) * notch_y + across_HW * (1 - notch_x)) / edge


DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}


def full_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Everything that can be said of the scene, in changing words."""
    return _caption(scene, rng, keep=1.0)


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Some of what can be said, as people do: some attributes are omitted."""
    return _caption(scene, rng, keep=0.2)


def _caption(scene: Scene, rng, *, keep: float) -> str:
    background = _word(rng, scene.background) if rng.random() < keep else None
    if len(scene.figures) == 1:
        figure = scene.figures[0]
        where = _place(rng, figure) if rng.random() < keep else ""
        what = _phrase(rng, figure, keep) + where
    else:
        # Both objects keep color and shape: they are what tells them apart.
        first, second = scene.figures
        if abs(first.x - second.x) > abs(first.y - second.y):
            relation, inverse = ("left of", "to the left of"), ("right of", "to the right of")
        else:
            relation, inverse = ("above", "over"), ("below", "under")
        if rng.random() < 0.5:
            first, second, relation = second, first, inverse
        linked = _pick(rng, relation) if rng.random() < max(keep, 0.7) else "and"
        what = f"{_phrase(rng, first, keep)} {linked} {_phrase(rng, second, keep)}"
    preposition = _pick(rng, ("on a {} background", "on {}", "against a {} background"))
    return (
        _pick(rng, OPENINGS) + what + (f" {preposition.format(background)}" if background else "")
    )


def _phrase(rng, figure: Figure, keep: float) -> str:
    words = [figure.color, _word(rng, figure.shape)]
    if rng.random() < keep:
        words.insert(0, _word(rng, figure.size))
    article = _pick(rng, ("a", "a", "one", "the"))
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join((article, *words))


def _place(rng, figure: Figure) -> str:
    column = "left" if figure.x < 0.4 else "right" if figure.x > 0.6 else ""
    row = "top" if figure.y < 0.4 else "bottom" if figure.y > 0.6 else ""
    if row and column:
        return _pick(rng, (" in the {} {} corner", " at the {} {}")).format(row, column)
    if row:
        return f" at the {row}"
    if column:
        return f" on the {column}"
    return _pick(rng, (" in the middle", " in the center"))


def _word(rng, meaning: str) -> str:
    return _pick(rng, SYNONYMS.get(meaning, (meaning,)))


def _pick(rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
