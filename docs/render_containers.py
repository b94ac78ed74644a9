"""Render the table of containers in docs/data.md from the code.

python docs/render_containers.py
"""

from __future__ import annotations

import re
from pathlib import Path

from forvalue_dagster.data.containers import CONTAINERS

PAGE = Path(__file__).with_name("data.md")
_TABLE = re.compile(r"(<!-- containers: [^>]*-->\n).*?(<!-- end of containers -->)", re.DOTALL)


def main(page: Path = PAGE) -> None:
    lines = ["| container | known by | a row |", "| --- | --- | --- |"]
    lines += [f"| {c.name} | {c.known_by} | {c.rows} |" for c in CONTAINERS]
    table = "\n".join(lines)
    text = page.read_text("utf-8")
    page.write_text(_TABLE.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text), "utf-8")


if __name__ == "__main__":
    main()
