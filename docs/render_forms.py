"""Render the table of forms in docs/data.md from the code.

python docs/render_forms.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from forvalue_dagster.data.form_examples import FORM_EXAMPLES

PAGE = Path(__file__).with_name("data.md")
_TABLE = re.compile(r"(<!-- forms: [^>]*-->\n).*?(<!-- end of forms -->)", re.DOTALL)


def main(page: Path = PAGE) -> None:
    lines = ["| form | a row | read as |", "| --- | --- | --- |"]
    for example in FORM_EXAMPLES:
        row = json.dumps(example.row, ensure_ascii=False)
        named = "" if example.columns == type(example.columns)() else " (columns are named)"
        lines.append(f"| {example.form}{named} | `{row}` | {example.read_as} |")
    table = "\n".join(lines)
    text = page.read_text("utf-8")
    page.write_text(_TABLE.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text), "utf-8")


if __name__ == "__main__":
    main()
