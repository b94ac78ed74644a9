"""What it costs to adopt the plugin: seconds at start, megabytes on disk.

    python -m benchmarks.adoption

"definitions" loads this project's definitions in a new process, beside a process that imports
Dagster alone; medians. "installed" sums the files of the plugin's required distributions, without
extras, and what of it is torch and Dagster, which a project for finetuning has anyway.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

from benchmarks.harness import argument_parser, save

START = {
    "import dagster": "import dagster",
    "definitions": "import definitions; definitions.defs",
}
LIKELY_THERE = ("torch", "dagster", "transformers", "polars")


def seconds(code: str, repeats: int) -> float:
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        spent.append(time.perf_counter() - start)
    return round(statistics.median(spent), 2)


def required(name: str, found: set[str]) -> set[str]:
    """The distributions that a distribution needs here, without extras."""
    plain = re.sub(r"[-_.]+", "-", name).lower()
    if plain in found:
        return found
    try:
        needs = distribution(name).requires or []
    except PackageNotFoundError:
        return found
    found.add(plain)
    for text in needs:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            required(need.name, found)
    return found


def megabytes(names: set[str]) -> float:
    files = [file for name in names for file in distribution(name).files or []]
    paths = [file.locate() for file in files]
    return round(sum(path.stat().st_size for path in paths if path.is_file()) / 1e6)  # type: ignore[union-attr]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    start = {name: seconds(code, arguments.repeats) for name, code in START.items()}
    everything = required("forvalue-dagster", set())
    there: set[str] = set()
    for name in LIKELY_THERE:
        required(name, there)
    save(
        "adoption",
        {
            "seconds": start,
            "seconds beyond dagster": round(start["definitions"] - start["import dagster"], 2),
            "installed_megabytes": megabytes(everything),
            "of that not already there": megabytes(everything - there),
        },
    )


if __name__ == "__main__":
    main()
