"""The report's pictures: curves as SVG that takes the page's colours, matrices as heat maps."""

import base64
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

POINTS = 400  # of a curve; a longer one is averaged in bins
COLORMAP = "magma"

# Matplotlib draws with these; the page then replaces each by its variable for light or dark.
INK, GRID = "#010101", "#020202"
SERIES = ("#030303", "#040404", "#050505")
VARIABLES = {
    INK: "var(--soft)",
    GRID: "var(--line)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, start=1)},
}
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "clip_jax",  # the same ids, and so the same file, each time
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
}


class Line(NamedTuple):
    """A curve: its points at rising steps."""

    steps: Sequence[int]
    values: Sequence[float]
    dots: bool = False  # mark each point, for values that are few


def line_chart(name: str, lines: Sequence[Line], *, level: float | None = None) -> str:
    """Curves over the step number as an SVG element without a size of its own.

    Args:
      name: unique on the page; ids start with it.
      lines: at most three.
      level: where a dashed line across is drawn, such as what guessing reaches.
    """
    # Half a second that only those pay who write a report.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 4)))
        for line, color in zip(lines, SERIES):
            _draw(axes, line, color)
        axes.margins(x=0.02, y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _for_page(text.getvalue(), name)


def _draw(axes, line: Line, color: str):
    steps, values = np.asarray(line.steps), np.asarray(line.values)
    if line.dots or len(steps) == 1:
        axes.plot(steps, values, color=color, linewidth=2, marker="o", markersize=5)
        return
    bins = max(1, -(-len(steps) // POINTS))
    steps, values = _binned(steps, bins), _binned(values, bins)
    window = max(1, len(values) // 25)
    if window > 1:
        axes.plot(steps, values, color=color, linewidth=1, alpha=0.3)
    axes.plot(steps, smooth(values, window), color=color, linewidth=2)


def _binned(values: np.ndarray, size: int) -> np.ndarray:
    """Means of `size` neighbours each; the last bin may have fewer."""
    starts = np.arange(0, len(values), size)
    return np.add.reduceat(values.astype(float), starts) / np.diff([*starts, len(values)])


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window centred on each value, which is narrower at the ends."""
    sums = np.cumsum([0.0, *values])
    at = np.arange(len(values))
    # As far to the left as to the right, so that the ends are not pulled inwards.
    reach = np.minimum(window // 2, np.minimum(at, len(values) - 1 - at))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def _for_page(svg: str, name: str) -> str:
    """The bare element, with the page's colours and with ids that no other chart has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    svg = svg.replace(size[0], 'aria-hidden="true" focusable="false"', 1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    return re.sub(r"\s*\n\s*", " ", svg)


def heat_map(matrix_NN: np.ndarray, low: float, high: float) -> str:
    """A matrix as a PNG of one pixel an entry, as a data URI. The page enlarges it."""
    image = Image.fromarray(_colors(matrix_NN, low, high))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def heat_color(value: float, low: float, high: float) -> tuple[str, bool]:
    """The colour of one value of a heat map, and whether text on it must be dark."""
    red, green, blue = _colors(np.array([value]), low, high)[0].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}", 0.3 * red + 0.6 * green + 0.1 * blue > 120


def _colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 colours, with an axis for the channels; what is no number becomes the lowest."""
    import matplotlib  # see line_chart

    share = (np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-9)
    return matplotlib.colormaps[COLORMAP](np.clip(share, 0, 1), bytes=True)[..., :3]
