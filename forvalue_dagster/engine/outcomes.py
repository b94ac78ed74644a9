"""One record for every input row: scored, or skipped with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import polars as pl

from forvalue_dagster.data.skip_reasons import counted
from forvalue_dagster.engine.columns import IDENTITY, OUTCOME
from forvalue_dagster.engine.forward import PassedRows, Unscored
from forvalue_dagster.valuation.profile import ValueDirection
from forvalue_dagster.valuation.value import RowValues

T = TypeVar("T")
# Called after each batch with (rows done, response tokens done).
Progress = Callable[[int, int], None]


class NonFiniteModelError(RuntimeError):
    """The model gave no row a finite output: the model is broken."""


class Outcomes:
    """Collects the outcome of every row of a frame.

    Args:
        frame: canonical rows.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self._identity = frame.select(*IDENTITY)
        self._records: list[dict[str, Any] | None] = [None] * len(frame)

    def skip(self, unscored: Unscored) -> None:
        """Record a row that did not go through the model."""
        self._records[unscored.row] = {
            "status": "skipped",
            "reason": unscored.reason,
            "truncated": unscored.truncated,
            "response_tokens": 0,
        }

    def add(
        self,
        rows: Sequence[int],
        truncated: Sequence[bool],
        lengths: Sequence[int],
        results: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Record the results of rows; None, or a number that is not finite, skips the row."""
        for row, cut, tokens, result in zip(rows, truncated, lengths, results, strict=True):
            numbers = [v for v in (result or {}).values() if isinstance(v, float)]
            finite = result is not None and all(map(math.isfinite, numbers))
            self._records[row] = {
                **(result if result is not None and finite else {}),
                "status": "scored" if finite else "skipped",
                "reason": None if finite else "non_finite",
                "truncated": cut,
                "response_tokens": tokens,
            }

    def frame(self, results: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """Return the table: identity, `results`, outcome; one row for each row, in order."""
        table = pl.DataFrame(self._records, schema={**results, **OUTCOME})
        return self._identity.hstack(table)


def with_progress(
    passes: Iterable[PassedRows[T] | Unscored], progress: Progress | None
) -> Iterator[PassedRows[T] | Unscored]:
    """Yield the results of a pass, and report each finished batch."""
    rows = tokens = 0
    for passed in passes:
        yield passed
        if isinstance(passed, Unscored):
            rows += 1
            continue
        rows += len(passed.rows)
        tokens += sum(passed.lengths)
        if progress is not None:
            progress(rows, tokens)


def refuse_broken_model(scored: int, non_finite: int) -> None:
    """Raise if rows went through the model and none came out finite.

    Raises:
        NonFiniteModelError: if so; the message says how many.
    """
    if non_finite and not scored:
        raise NonFiniteModelError(
            f"The model's output was not finite for any of the {non_finite} rows that went through "
            "it. Expected finite logits: check its weights, and its dtype (float16 overflows in "
            "many models; try bfloat16 or float32)."
        )


def refuse_broken_outcome(table: pl.DataFrame) -> pl.DataFrame:
    """Return a finished table; raise if it shows that the model is broken."""
    scored = table.filter(pl.col("status") == "scored").height
    refuse_broken_model(scored, table.filter(pl.col("reason") == "non_finite").height)
    return table


def refuse_unused_groups(table: pl.DataFrame) -> None:
    """Raise if no row of a validation group could be used.

    Raises:
        ValueError: if so; the message counts the skipped rows for each reason.
    """
    for (group,), rows in table.group_by("group", maintain_order=True):
        if not (rows["status"] == "scored").any():
            raise ValueError(
                f"No validation row of group {group!r} could be used; each needs at least one "
                f"row with a finite, non-empty response. Skipped: {counted(rows['reason'])}."
            )


def value_columns(direction: ValueDirection) -> dict[str, pl.DataType]:
    """Return the columns that `value_records` fills."""
    names = ["value", *_group_columns(direction), "alignment", "gradient_norm", "value_per_token"]
    return dict.fromkeys(names, pl.Float64())


def value_records(
    values: RowValues, lengths: Sequence[int], direction: ValueDirection
) -> list[dict[str, float]]:
    """Return the value columns of each row.

    Args:
        values: values of the rows.
        lengths: number of response tokens of each row.
        direction: the direction that they were computed along.
    """
    named = _group_columns(direction)
    columns = {
        "value": values.value.tolist(),
        "alignment": values.alignment.tolist(),
        "gradient_norm": values.norm.tolist(),
    }
    if named:
        columns |= dict(zip(named, values.groups.T.tolist(), strict=True))
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for record, tokens in zip(records, lengths, strict=True):
        record["value_per_token"] = record["value"] / tokens
    return records


def _group_columns(direction: ValueDirection) -> list[str]:
    # With one group, its value is also the overall value.
    return [] if len(direction.groups) == 1 else [f"value_{name}" for name in direction.groups]
