"""Formulas as MathML, which browsers draw by themselves: no script from elsewhere."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</(?:span|div)>', re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    """Replace what arithmatex marked (a hook of mkdocs)."""

    def drawn(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(unescape(match[2]), display=display)

    return _FORMULA.sub(drawn, html)
