"""Metadata that several assets show: counts, extremes, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from forvalue_dagster.data.skip_reasons import SKIP_REASONS
from forvalue_dagster.orchestration.display.plots import histogram

if TYPE_CHECKING:
    from forvalue_dagster.valuation.noise import NoiseProbe

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
    """Show a few rows by shard, row number and scores, never by their text."""
    shown = rows.select(
        "sample_id", "row", pl.col("value", "alignment", "nll").round(3), "response_tokens"
    )
    return dg.MetadataValue.table(
        records=[dg.TableRecord(record) for record in shown.to_dicts()],
        schema=dg.TableSchema(
            [dg.TableColumn(name, str(dtype)) for name, dtype in shown.schema.items()]
        ),
    )


def describe_probe(probe: NoiseProbe) -> dict[str, Any]:
    """Show how well the noise probe tells damaged validation rows from clean ones."""
    by_recipe = probe.auc_by_recipe
    damaged = probe.copies[np.isfinite(probe.copies)]
    return {
        "noise_probe_auc": round(probe.auc, 4),
        **listing(
            "noise_probe_by_recipe",
            pl.DataFrame(
                {
                    "recipe": list(by_recipe),
                    "auc": [round(auc, 4) for auc in by_recipe.values()],
                    "counts_in_the_fraction": probe.detectable.tolist(),
                }
            ),
        ),
        "noise_probe": histogram(
            {"validation rows": pl.Series(probe.clean), "damaged copies": pl.Series(damaged)},
            title="What the noise probe, cross-fitted, says of the validation rows",
            unit="log-odds of damage",
        ),
    }


def share(flags: pl.Series) -> float:
    """Return the share of true flags, 0 without any row."""
    return round(float(flags.mean() or 0.0), 4)  # type: ignore[arg-type]


def listing(name: str, rows: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    """Show the first rows of a table without text; nothing if it is empty."""
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
