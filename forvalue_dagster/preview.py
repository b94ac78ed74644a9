"""Show how rows are read, in a terminal: `python -m forvalue_dagster.preview PATH --model MODEL`.

Once this module is imported, the package's attribute `preview` is this module and no longer the
function of that name. So the module can be called like the function.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.engine.preview import preview
from forvalue_dagster.models.errors import ModelLoadError
from forvalue_dagster.options.model import EMBEDDED

_COLUMNS = frozenset(field.name for field in fields(Columns))
# Keys in an entry of LLaMA-Factory's dataset_info.json, which are never names of columns.
_ENTRY = frozenset(
    ("file_name", "formatting", "columns", "tags", "ranking", "hf_hub_url", "ms_hub_url")
)


class _Callable(ModuleType):
    """A module that can be called like the function of its name."""

    __call__ = staticmethod(preview)


sys.modules[__name__].__class__ = _Callable


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how rows were read, and return the exit status."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may not be able to show every character of the rows.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        columns = None if options.columns is None else _columns(options.columns, options.dataset)
        seen = preview(
            options.path,
            model=options.model,
            tokens=options.tokens,
            columns=columns,
            rows=options.rows,
        )
    except (DataFileError, ModelLoadError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{seen.in_colour() if sys.stdout.isatty() else seen}\n")
    return 0


def _columns(given: str, dataset: str | None) -> Columns:
    """Read the names of columns from a JSON object or a file with one.

    Raises:
        ValueError: if it has neither names of columns nor an entry of a dataset_info.json.
    """
    try:
        text = given if given.lstrip().startswith("{") else Path(given).read_text("utf-8-sig")
        said: Any = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--columns is {given!r} ({error}); expected a JSON object, or a file of one."
        ) from error
    if isinstance(said, dict) and dataset is not None:
        if dataset not in said:
            raise ValueError(f"--dataset is {dataset!r}; expected one of {', '.join(said)}.")
        said = said[dataset]
    if not isinstance(said, dict):
        raise ValueError(f"--columns holds a {type(said).__name__}; expected a JSON object.")
    if said.keys() & _ENTRY:
        return Columns.from_llamafactory(said)
    if said and all(isinstance(entry, dict) and entry.keys() & _ENTRY for entry in said.values()):
        raise ValueError(
            f"--columns holds the datasets {', '.join(said)}; expected --dataset with one of them."
        )
    if unknown := sorted(said.keys() - _COLUMNS):
        raise ValueError(
            f"--columns names {unknown}, which are unknown; expected {', '.join(sorted(_COLUMNS))}."
        )
    return Columns(**said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m forvalue_dagster.preview",
        description="Show how rows are read, and which of their tokens are scored.",
    )
    parser.add_argument("path", help="a data file, or a folder of them")
    parser.add_argument("--model", default=EMBEDDED, help="hub id, local directory, or 'embedded'")
    parser.add_argument(
        "--rows", type=int, default=3, help="rows of each shard to show (default 3)"
    )
    parser.add_argument("--tokens", choices=("response", "all"), default="response")
    parser.add_argument(
        "--columns",
        metavar="JSON",
        help="where the conversation is kept, as JSON or a file of it: "
        '\'{"prompt": ["task", "numbers"], "response": "sum"}\', an entry of LLaMA-Factory\'s '
        "dataset_info.json, or that file",
    )
    parser.add_argument("--dataset", metavar="NAME", help="the entry of that file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
