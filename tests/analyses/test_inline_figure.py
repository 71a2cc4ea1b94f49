import re

import pandas as pd
import pytest

from analyses.inline_figure import table_with_intervals


def marks(page: str) -> list[tuple[float, float, float]]:
    """Left end, centre and right end of every row's interval, in pixels."""
    lines = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="8.0"', page)
    dots = re.findall(r'<circle cx="([\d.]+)"', page)
    return [(float(a), float(dot), float(b)) for (a, b), dot in zip(lines, dots, strict=True)]


def test_intervals_are_drawn_to_one_scale_that_holds_zero():
    frame = pd.DataFrame({"delta": [1.0, 2.0], "ci_low": [0.5, 1.0], "ci_high": [2.0, 4.0]})
    (first, second) = marks(table_with_intervals(frame, "delta"))
    pixels_per_unit = 168 / 4  # 180 wide less two margins of 6, for 0 to 4
    assert first == pytest.approx((6 + 0.5 * pixels_per_unit, 6 + pixels_per_unit, 6 + 2 * pixels_per_unit), abs=0.06)
    assert second == pytest.approx((6 + pixels_per_unit, 6 + 2 * pixels_per_unit, 6 + 4 * pixels_per_unit), abs=0.06)


def test_what_has_no_number_is_said_and_not_drawn():
    frame = pd.DataFrame({"delta": [float("nan"), 1.0], "ci_low": [float("nan")] * 2, "ci_high": [float("nan")] * 2})
    page = table_with_intervals(frame, "delta")
    assert 'aria-label="no value"' in page
    assert page.count("<circle") == 1


def test_text_in_the_frame_stays_text():
    frame = pd.DataFrame({"name": ["<script>alert(1)</script>"], "delta": [1.0], "ci_low": [0.0], "ci_high": [2.0]})
    page = table_with_intervals(frame, "delta")
    assert "<script>" not in page
    assert "http" not in page
