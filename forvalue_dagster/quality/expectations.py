"""Check canonical rows with Great Expectations, and report the results as Dagster checks.

Importing GX takes seconds, so it is imported only when a check runs. It cannot read polars, so the
checked columns are passed as pandas. Failing rows are named by place, never by text, in metadata
and in the pages.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
from upath import UPath

from forvalue_dagster.data.problems import plain_name

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

MAX_ROWS_NAMED = 20
# A result contains no value of a row, so none can reach a page.
_RESULT_FORMAT = {"result_format": "COMPLETE", "partial_unexpected_count": 0}

Record = dict[str, str | bool | int]


def validate(
    facts: pl.DataFrame,
    suites: Sequence[ExpectationSuite],
    pages: UPath | None = None,
    title: str = "rows",
) -> list[Record]:
    """Check rows against suites; return one record for each expectation.

    Args:
        facts: result of `row_facts`; every column that a suite names must be in it.
        suites: the suites, with distinct names.
        pages: folder for Data Docs, one page for each suite; None writes none.
        title: name of the rows in the pages' path.
    """
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("rows")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("rows")
    )
    rows = {"dataframe": _as_pandas(facts)}
    records: list[Record] = []
    for suite in suites:
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=suite.name, data=batch, suite=context.suites.add(suite))
        )
        outcome = definition.run(batch_parameters=rows, result_format=_RESULT_FORMAT)
        records += [_record(suite.name, result, facts) for result in outcome.results]
    _hide_values(context.validation_results_store)
    if pages is not None:
        _write_pages(context, pages, title)
    return records


def _as_pandas(facts: pl.DataFrame) -> Any:
    """Return a pandas frame that keeps integers: with nulls, pandas would make them floats."""
    import pandas as pd  # type: ignore[import-untyped]

    frame = facts.to_pandas()
    for column in facts.select(pl.selectors.integer()):
        if column.null_count():
            kind = "UInt64" if column.dtype == pl.UInt64 else "Int64"
            frame[column.name] = pd.array(column.to_list(), dtype=kind)
    return frame


def critical_result(records: Sequence[Record], rows: int, **result: Any) -> dg.AssetCheckResult:
    """Return the check result of the critical expectations, with severity ERROR."""
    return _result(records, rows, critical=True, **result)


def warning_result(records: Sequence[Record], rows: int, **result: Any) -> dg.AssetCheckResult:
    """Return the check result of all other expectations, with severity WARN."""
    return _result(records, rows, critical=False, **result)


def _result(
    records: Sequence[Record], rows: int, *, critical: bool, metadata: Any = None, **result: Any
) -> dg.AssetCheckResult:
    own = [record for record in records if (record["severity"] == "critical") == critical]
    failed = [record for record in own if not record["passed"]]
    return dg.AssetCheckResult(
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN,
        description=(
            "; ".join(f"{record['expectation']} failed: {record['observed']}" for record in failed)
            or f"All {len(own)} expectations hold for {rows} rows."
        ),
        metadata={
            "rows": rows,
            "expectations": dg.MetadataValue.table(
                [dg.TableRecord(record) for record in sorted(own, key=lambda r: bool(r["passed"]))],
                schema=dg.TableSchema(
                    [
                        dg.TableColumn("suite"),
                        dg.TableColumn("expectation"),
                        dg.TableColumn("passed", "bool"),
                        dg.TableColumn("severity"),
                        dg.TableColumn("observed"),
                    ]
                ),
            ),
            **(metadata or {}),
        },
        **result,
    )


def _record(suite: str, result: Any, rows: pl.DataFrame) -> Record:
    """Return one expectation's result as plain values, without any value of the data."""
    config, details = result.expectation_config, result.result
    columns = config.kwargs.get("column") or ", ".join(config.kwargs.get("column_list", []))
    unexpected = details.get("unexpected_index_list") or []
    count = details.get("unexpected_count")
    if _raised(result.exception_info):
        observed = "the expectation could not be evaluated"
    elif count is None:
        observed = f"observed {_observed(details.get('observed_value'), columns)}"
    else:
        observed = f"{count} of {len(rows)} rows"
        if unexpected:
            observed += f" (rows {_places(unexpected, rows)})"
    return {
        "suite": suite,
        "expectation": f"{config.type}({columns})",
        "passed": bool(result.success),
        "severity": str(getattr(config, "severity", None) or "critical").rpartition(".")[2].lower(),
        "observed": observed,
    }


def _hide_values(store: Any) -> None:
    """Remove from the pages' results everything that may be text of rows."""
    for key in store.list_keys():
        outcome = store.get(key)
        for result in outcome.results:
            column = result.expectation_config.kwargs.get("column") or ""
            if result.result.get("observed_value") is not None:
                result.result["observed_value"] = _observed(result.result["observed_value"], column)
            result.result.pop("details", None)
        store.set(key, outcome)


def _observed(value: Any, column: str) -> str:
    """Return the observed figures and column names, but no value of a column."""
    if value is None or isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and not column:
        return str([plain_name(str(name)) for name in value])
    return "something else (not shown, for it may be text of the rows)"


def _raised(exceptions: Mapping[str, Any]) -> bool:
    """Whether the evaluation raised: GX reports it once, or once for each metric."""
    nested = [value for value in exceptions.values() if isinstance(value, Mapping)]
    return any(entry.get("raised_exception") for entry in [exceptions, *nested])


def _places(indices: list[int], rows: pl.DataFrame) -> str:
    named = [str(rows["row"][index]) for index in indices[:MAX_ROWS_NAMED]]
    more = len(indices) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _write_pages(context: Any, pages: UPath, title: str) -> None:
    """Write Data Docs; a page of the same title is replaced, in any kind of storage."""
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch)
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": scratch}
        context.add_data_docs_site(
            "rows",
            {
                "class_name": "SiteBuilder",
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": store,
            },
        )
        context.build_data_docs(site_names=["rows"])
        for file in sorted(site.rglob("*")):
            parts = file.relative_to(site).parts
            if not file.is_file() or parts == ("index.html",):
                continue
            if parts[0] == "validations":
                # …/suite/run/time/rows.html becomes …/suite/title/latest/rows.html: at the same
                # depth, so that links to styles work, and with the same name in the next run.
                parts = ("validations", parts[1], title, "latest", parts[-1])
            target = pages.joinpath(*parts)
            if parts[0] == "static" and target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
