"""How rows are read, in a terminal: `python -m forvalue_dagster.preview PATH --model MODEL`.

A command and nothing to import: as a module it would stand in front of the function `fv.preview`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.engine.preview import preview
from forvalue_dagster.models.errors import ModelLoadError
from forvalue_dagster.options.model import EMBEDDED


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how rows were read, and return the exit status."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may not have every character of the rows.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        seen = preview(options.path, model=options.model, tokens=options.tokens, rows=options.rows)
    except (DataFileError, ModelLoadError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{seen.in_colour() if sys.stdout.isatty() else seen}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m forvalue_dagster.preview",
        description="Show how rows are read, and which of their tokens are scored.",
    )
    parser.add_argument("path", help="a data file, or a folder of them")
    parser.add_argument("--model", default=EMBEDDED, help="hub id, local directory, or 'embedded'")
    parser.add_argument("--rows", type=int, default=3, help="so many of each shard (default 3)")
    parser.add_argument("--tokens", choices=("response", "all"), default="response")
    return parser


if __name__ == "__main__":
    sys.exit(main())
