"""Values as people read them, and as a script of the page reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np

LONGEST = 60  # characters of a cell or name that are shown; the rest is in its tooltip
FULLEST = 400


def number(value: float | None, digits: int = 4) -> str:
    """Format to significant digits; whole parts keep all of theirs up to a million.

    >>> [number(v) for v in (0.123456, -3750.26, 12345.6, 2.5e9, 1e-7, float("nan"))]
    ['0.1235', '−3750', '12,346', '2.5e9', '1e−7', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    value, size = value + 0.0, abs(value)  # no minus before zero
    if size >= 1e6 or 0 < size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    elif size >= 9999.5:
        text = f"{value:,.0f}"
    elif size >= 1000:
        text = f"{value:.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """Format a share: a tenth of a percent, and two digits of what is less than one.

    >>> percent(0.98765), percent(1.0), percent(0.001234), percent(float("nan"))
    ('98.8%', '100%', '0.12%', '–')
    """
    if math.isnan(share):
        return "–"
    value = 100 * share
    text = f"{value:.2g}" if abs(value) < 1 else f"{value:.1f}".removesuffix(".0")
    return f"{text}%".replace("-", "−")


def shortened(text: str, most: int = LONGEST) -> str:
    """Cut a long text, and say so with an ellipsis."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def cell(value: Any) -> str | None:
    """Text of a table's cell; None where it is missing."""
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value)}".replace("-", "−")
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else number(float(value))
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return shortened(str(value), FULLEST)


def rounded(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Round to significant digits for the page; None for what is no finite number."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in map(float, values)]


def script_json(value: Any) -> str:
    """JSON that no browser takes for markup, wherever it stands in a page.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
