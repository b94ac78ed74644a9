"""Great Expectations on canonical rows, told as Dagster check results.

GX imports in seconds, so only when a check runs. It has no polars source: the checked columns go
over as pandas. Failing rows are named by place, never by text.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

MAX_ROWS_NAMED = 20


def default_suite() -> ExpectationSuite:
    """Return what any finetuning rows are held to."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name="forvalue_rows",
        expectations=[
            gxe.ExpectTableRowCountToBeBetween(min_value=1, severity="critical"),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["shard", "row"], severity="critical"),
            gxe.ExpectColumnValuesToBeNull(column="problem", mostly=0.99, severity="critical"),
            gxe.ExpectColumnValuesToBeBetween(
                column="response_characters", min_value=1, mostly=0.99, severity="critical"
            ),
            gxe.ExpectColumnValuesToBeUnique(column="sample_id", severity="warning"),
        ],
    )


def checked_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """Return canonical rows with what the default suite looks at, without the bulky text."""
    assistant = pl.element().struct.field("role") == "assistant"
    turns = pl.col("messages").str.json_decode(
        pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    )
    spoken = turns.list.eval(
        pl.when(assistant).then(pl.element().struct.field("content").str.len_chars()).otherwise(0)
    )
    return rows.with_columns(response_characters=spoken.list.sum()).drop(
        "messages", "tools", "source"
    )


def validate(rows: pl.DataFrame, suite: ExpectationSuite) -> dg.AssetCheckResult:
    """Run a suite over rows and report it as one check.

    A failed expectation of severity critical makes the check an ERROR, any other a WARN.

    Args:
        rows: a table; every column the suite names must be in it.
        suite: the expectations.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("rows")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("rows")
        .get_batch({"dataframe": rows.to_pandas()})
    )
    outcome = batch.validate(suite, result_format="COMPLETE")
    records = [_record(result, rows) for result in outcome.results]
    failed = [record for record in records if not record["passed"]]
    critical = any(record["severity"] == "critical" for record in failed)
    return dg.AssetCheckResult(
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN,
        description=(
            "; ".join(f"{r['expectation']} failed: {r['observed']}" for r in failed)
            or f"All {len(records)} expectations hold for {len(rows)} rows."
        ),
        metadata={
            "rows": len(rows),
            "expectations": dg.MetadataValue.table([dg.TableRecord(r) for r in records]),
        },
    )


def _record(result: Any, rows: pl.DataFrame) -> dict[str, str | bool | int]:
    """Describe one expectation's outcome in plain values, without any value of the data."""
    config, details = result.expectation_config, result.result
    columns = config.kwargs.get("column") or ", ".join(config.kwargs.get("column_list", []))
    unexpected = details.get("unexpected_index_list") or []
    count = details.get("unexpected_count")
    if _raised(result.exception_info):
        observed = "the expectation could not be evaluated"
    elif count is None:
        observed = f"observed {details.get('observed_value')}"
    else:
        observed = f"{count} of {len(rows)} rows"
        if unexpected:
            observed += f" (rows {_places(unexpected, rows)})"
    return {
        "expectation": f"{config.type}({columns})",
        "passed": bool(result.success),
        "severity": str(getattr(config, "severity", None) or "critical").rpartition(".")[2].lower(),
        "observed": observed,
    }


def _raised(exceptions: Mapping[str, Any]) -> bool:
    """Whether evaluating raised: GX tells it flat, or once for each metric."""
    nested = [value for value in exceptions.values() if isinstance(value, Mapping)]
    return any(entry.get("raised_exception") for entry in [exceptions, *nested])


def _places(indices: list[int], rows: pl.DataFrame) -> str:
    named = [str(rows["row"][index]) for index in indices[:MAX_ROWS_NAMED]]
    more = len(indices) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
