"""Curves and heat maps."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from clip_jax.runs.report.figures import Line, heat_color, heat_map, line_chart, smooth


def svg_of(name="chart", steps=200, **options):
    values = np.sin(np.arange(steps) / 10)
    return line_chart(
        name, [Line(range(steps), values), Line([0, 50], [0, 1], dots=True)], **options
    )


def test_a_chart_is_one_svg_element_without_size_or_fixed_colors():
    svg = svg_of(level=0.5)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "width" not in root.attrib and "viewBox" in root.attrib
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set()
    assert {"var(--series-1)", "var(--series-2)", "var(--soft)"} <= set(
        re.findall(r"var\([^)]*\)", svg)
    )


def test_ids_of_two_charts_differ_and_lead_somewhere():
    first, second = (svg_of(name) for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', first))
    assert targets and targets <= ids[0]


def test_the_same_values_give_the_same_chart():
    assert svg_of() == svg_of()


def test_a_long_run_gives_a_chart_no_larger_than_a_short_one():
    assert len(svg_of(steps=200_000)) < 2 * len(svg_of(steps=1_000))


def test_a_running_mean_leaves_a_line_straight_and_a_constant_alone():
    line = np.arange(50.0)
    np.testing.assert_allclose(smooth(line, 9), line)
    np.testing.assert_allclose(smooth(np.full(7, 3.0), 100), 3.0)
    assert np.var(smooth(np.random.default_rng(0).normal(size=500), 20)[10:-10]) < 0.1


def test_a_heat_map_has_a_pixel_for_each_entry_and_rises_in_brightness():
    matrix_NN = np.linspace(-1, 1, 36).reshape(6, 6)
    uri = heat_map(matrix_NN, -1, 1)
    pixels_HWC = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L")
    )
    assert pixels_HWC.shape == (6, 6)
    assert (np.diff(pixels_HWC.astype(int).ravel()) >= 0).all()


def test_the_color_of_a_value_tells_which_text_is_readable_on_it():
    assert heat_color(0.0, 0, 1) == ("#000003", False)
    assert heat_color(1.0, 0, 1)[1]
    assert heat_color(float("nan"), 0, 1) == heat_color(0.0, 0, 1)


@pytest.mark.parametrize("low", [0.0, 0.3])
def test_a_scale_without_extent_has_a_color_all_the_same(low):
    assert re.fullmatch(r"#[0-9a-f]{6}", heat_color(0.3, low, low)[0])
