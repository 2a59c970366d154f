"""report/: numbers, ticks, curves, pictures and attention maps."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError

from lightwam.report.charts import even_ticks, log_ticks, moving_average, thin, training_chart
from lightwam.report.formatting import _environment, duration, one_line, percent, short_number
from lightwam.report.images import jpeg, overlay, upsample
from lightwam.report.imagination import distinct_queries
from lightwam.report.training import flatten


def test_numbers_are_formatted() -> None:
    numbers = {
        0.0: "0",
        0.0123: "0.0123",
        3000.0: "3,000",
        460e3: "460k",
        1e-4: "1e-4",
        1.5e-5: "1.5e-5",
        45.23: "45.2",
    }
    assert {value: short_number(value) for value in numbers} == numbers
    rates = {0.0: "0 %", 0.003: "0.3 %", 0.95: "95 %", 0.9999: "99.9 %", 1.0: "100 %"}
    assert {value: percent(value).replace("\u202f", " ") for value in rates} == rates
    times = {4.21: "4.2 s", 59.7: "1 min 0 s", 83.0: "1 min 23 s", 3725.0: "1 h 2 min"}
    assert {value: duration(value).replace("\u202f", " ") for value in times} == times


def test_markdown_of_a_files_text_is_escaped() -> None:
    assert one_line("a <b> | *c*\n & d") == r"a &lt;b> \| \*c\* &amp; d"


def test_a_name_that_a_template_misspells_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="suces"):
        _environment().from_string("{{ suces }}").render(success=1)


def test_ticks_are_round_and_within_the_axis() -> None:
    assert even_ticks(0.0, 3000.0, 4) == [0, 1000, 2000, 3000]
    assert even_ticks(0.0, 0.93) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert log_ticks(0.004, 0.4) == pytest.approx([0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    assert log_ticks(1e-6, 1.0) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_a_long_curve_keeps_its_spikes_and_its_mean() -> None:
    value = np.ones(20_000)
    value[12_345] = 9.0
    kept = thin(value)
    assert 12_345 in kept and len(kept) < 600
    line = np.arange(100.0)
    assert moving_average(line) == pytest.approx(line)


def test_a_curve_is_drawn_within_its_axes() -> None:
    step = np.arange(10.0, 110.0, 10.0)
    chart = training_chart("Loss", "nats", step, np.linspace(2.0, 1.0, 10))
    assert chart is not None and [line.css for line in chart.lines] == ["raw", "smooth"]
    left, top, right, bottom = chart.box
    assert (chart.at_x(10.0), chart.at_x(100.0)) == (left, right)
    assert chart.at_y(chart.y.low) == bottom and chart.at_y(99.0) == top
    first = chart.points(chart.lines[0]).split()[0]
    assert first == f"{left}.0,{chart.at_y(2.0)}" and top < chart.at_y(2.0) < chart.at_y(1.0) < bottom


@pytest.mark.parametrize(("falls_to", "logarithmic"), [(0.5, False), (0.001, True)])
def test_a_curve_over_orders_of_magnitude_has_a_log_scale(falls_to: float, logarithmic: bool) -> None:
    step = np.arange(1.0, 101.0)
    chart = training_chart("Loss", "", step, np.geomspace(1.0, falls_to, 100))
    assert chart is not None and chart.y.logarithmic == logarithmic and ("log scale" in chart.y.title) == logarithmic
    middle = (chart.at_y(falls_to) + chart.at_y(1.0)) / 2
    assert (abs(chart.at_y(falls_to**0.5) - middle) < 1) == logarithmic


def test_curves_of_one_point_and_of_no_point() -> None:
    chart = training_chart("Loss", "", np.array([5.0]), np.array([0.25]))
    assert chart is not None and chart.dots == (("dot", 5.0, 0.25),) and chart.x.ticks() == [5.0]
    assert training_chart("Loss", "", np.array([5.0]), np.array([np.nan])) is None


def test_attention_is_spread_over_the_right_part_of_the_picture() -> None:
    weight = np.zeros((2, 4), np.float32)
    weight[1, 0] = 1.0
    full = upsample(weight, (20, 40))
    assert full.shape == (20, 40) and full[19, 0] == 1.0 and full[0, 0] == 0.0 and full[19, 39] == 0.0
    picture = np.full((20, 40, 3), 200, np.uint8)
    drawn = overlay(picture, weight)
    assert drawn.shape[0] >= 160 and drawn[-1, 0].sum() > drawn[0, -1].sum()


def test_queries_that_differ_most_are_selected() -> None:
    maps = np.full((5, 2, 2), 1.0, np.float32)
    maps[1, 0, 0], maps[3, 1, 1] = 4.0, 3.0
    assert distinct_queries(maps, 2) == [1, 3]
    assert distinct_queries(maps[:1], 4) == [0]


def test_a_picture_survives_its_encoding(tmp_path: Path) -> None:
    import av

    picture = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    image = jpeg(picture, 2)
    assert image.uri.startswith("data:image/jpeg;base64,") and (image.width, image.height) == (48, 32)
    with av.open(io.BytesIO(base64.b64decode(image.uri.split(",")[1])), format="mjpeg") as container:
        back = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(back.astype(int) - picture.astype(int)).mean() < 4


def test_settings_are_flattened() -> None:
    nested = {"a": {"b": 1, "c": "x"}, "d": [1, 2], "e": [{"f": None}]}
    assert flatten(nested) == [("a.b", "1"), ("a.c", "x"), ("d", "[1, 2]"), ("e[0].f", "null")]
