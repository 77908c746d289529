"""Pieces of HTML."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

from PIL import Image

from zoominnet.data.records import printable

JPEG_QUALITY = 80
RUN_COLOURS = 8
"""So many runs have colours of their own, which page.css gives."""
DASH = "–"
"""In the place of a number that there is none of."""


def escape(text: object) -> str:
    """Text as it stands in an element or between quotes."""
    return html.escape(printable(str(text)))


def number(value: float | None, decimals: int = 3) -> str:
    """With so many decimals; a dash for None and NaN."""
    return DASH if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def paragraph(text: str, kind: str = "about") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def run_name(index: int, label: str) -> str:
    """A run's name with its colour."""
    return f'<span class="swatch" style="background:var(--run-{index % RUN_COLOURS})"></span>{escape(label)}'


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    classes: Sequence[str] | None = None,
    text_columns: int = 1,
    caption: str = "",
) -> str:
    """A table in a box of its own that scrolls where it is too wide.

    Args:
        columns, rows: HTML; the first `text_columns` columns are words, the others numbers.
        classes: of the rows.
        caption: above it, HTML.
    """

    def cells(row: Sequence[str], tag: str) -> str:
        words, numbers = row[:text_columns], row[text_columns:]
        return "".join(
            [*(f'<{tag} class="words">{x}</{tag}>' for x in words), *(f"<{tag}>{x}</{tag}>" for x in numbers)]
        )

    body = "".join(
        f'<tr class="{each}">{cells(row, "td")}</tr>'
        for row, each in zip(rows, classes or [""] * len(rows), strict=True)
    )
    title = (
        f'<p class="caption">{caption}</p>' if caption else ""
    )  # outside: what is wider than the box must not be cut off
    head = f"<thead><tr>{cells(columns, 'th')}</tr></thead>"
    return f'{title}<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def figures(parts: Sequence[str], kind: str = "charts") -> str:
    """Side by side as many as there is room for; `kind` is the class of page.css that says how much that is."""
    return f'<div class="{kind}" style="--count:{len(parts)}">{"".join(parts)}</div>'


def jpeg_url(picture: Image.Image) -> str:
    """A photo as an address that holds it."""
    return _url(picture, "JPEG", quality=JPEG_QUALITY)


def png_url(picture: Image.Image) -> str:
    """A picture of few colours as an address that holds it."""
    return _url(picture, "PNG", optimize=True)


def _url(picture: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
