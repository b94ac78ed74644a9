"""Metadata that several assets show: counts, extremes, tables."""

from __future__ import annotations

import dagster as dg
import polars as pl

from forvalue_dagster.data.chat import SKIP_REASONS

EXTREMES = 5
MAX_ROWS_LISTED = 20


def outcome_counts(table: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    """Count scored and skipped rows, and the reasons."""
    skipped = table.filter(pl.col("status") == "skipped")
    counts: dict[str, dg.MetadataValue] = {
        "scored": dg.MetadataValue.int(len(table) - len(skipped)),
        "skipped": dg.MetadataValue.int(len(skipped)),
    }
    if len(skipped):
        reasons = (
            skipped["reason"]
            .value_counts(sort=True)
            .with_columns(meaning=pl.col("reason").replace_strict(SKIP_REASONS))
        )
        counts["skip_reasons"] = dg.MetadataValue.table(
            [dg.TableRecord(record) for record in reasons.to_dicts()]
        )
    return counts


def extremes(rows: pl.DataFrame) -> dg.MetadataValue:
    """Show a few rows by their place and scores, never by their text."""
    shown = rows.select(
        "sample_id", "row", pl.col("value", "alignment", "nll").round(3), "response_tokens"
    )
    return dg.MetadataValue.table(
        records=[dg.TableRecord(record) for record in shown.to_dicts()],
        schema=dg.TableSchema(
            [dg.TableColumn(name, str(dtype)) for name, dtype in shown.schema.items()]
        ),
    )


def share(flags: pl.Series) -> float:
    """Return the share of rows marked, 0 where there is none."""
    return round(float(flags.mean() or 0.0), 4)  # type: ignore[arg-type]


def listing(name: str, rows: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    """Show the first rows of a table that holds no text; nothing if it is empty."""
    if rows.is_empty():
        return {}
    shown = rows.head(MAX_ROWS_LISTED)
    return {
        name: dg.MetadataValue.table(
            [dg.TableRecord(record) for record in shown.to_dicts()],
            schema=dg.TableSchema(
                [dg.TableColumn(column, str(dtype)) for column, dtype in shown.schema.items()]
            ),
        )
    }
