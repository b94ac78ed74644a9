"""Asset checks on rows as they come: expectations, and leaks of the validation set."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import dagster as dg
import polars as pl

from forvalue_dagster.orchestration.describe import MAX_ROWS_LISTED, listing
from forvalue_dagster.orchestration.naming import LEAKAGE, ROW_EXPECTATIONS, Naming
from forvalue_dagster.orchestration.policies import WarningPolicy
from forvalue_dagster.storage.location import Storage

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

ROW_WARNINGS = "row_warnings"
NEAR_LEAKAGE = "validation_near_leakage"

Suite = Union[str, Path, "ExpectationSuite"]


def build_row_checks(naming: Naming, suites: Sequence[Suite]) -> list[dg.AssetChecksDefinition]:
    """Build the checks of the raw rows, a verdict each shard, and of the validation rows.

    Args:
        naming: of the graph.
        suites: the user's own, beside the default one: JSON files or objects.
    """
    return [
        _expectations(naming, "raw_finetuning_data", naming.shards, suites),
        _expectations(naming, "validation_data", None, suites),
        _leakage(naming),
    ]


def _expectations(
    naming: Naming,
    asset: str,
    shards: dg.PartitionsDefinition | None,
    own_suites: Sequence[Suite],
) -> dg.AssetChecksDefinition:
    key = naming.key(asset)

    @dg.multi_asset_check(
        name=naming.name(f"{asset}_expectations"),
        specs=[
            dg.AssetCheckSpec(
                ROW_EXPECTATIONS,
                asset=key,
                blocking=True,
                partitions_def=shards,
                description="Great Expectations of severity critical: columns and types, rows "
                "present, unique by place, readable, with a response.",
            ),
            dg.AssetCheckSpec(
                ROW_WARNINGS,
                asset=key,
                partitions_def=shards,
                description="All other expectations: duplicates, lengths, order of roles, broken "
                "encoding, patterns of personal data.",
            ),
        ],
        ins={"rows": dg.AssetIn(key=key)},
    )
    def expectations(
        context: dg.AssetCheckExecutionContext, rows: pl.DataFrame, storage: Storage
    ) -> Iterator[dg.AssetCheckResult]:
        from forvalue_dagster.quality.expectations import (
            critical_result,
            validate,
            warning_result,
        )
        from forvalue_dagster.quality.row_facts import row_facts
        from forvalue_dagster.quality.suites import default_suite, read_suite

        suites = [
            read_suite(suite) if isinstance(suite, str | Path) else suite for suite in own_suites
        ]
        title = context.partition_key if context.has_partition_key else "all"
        pages = storage.path("data_docs", *key.path)
        records = validate(row_facts(rows), [default_suite(), *suites], pages, title)
        links: dict[str, Any] = {
            f"page_{suite}": dg.MetadataValue.path(
                str(pages / "validations" / suite / title / "latest" / "rows-rows.html")
            )
            for suite in dict.fromkeys(str(record["suite"]) for record in records)
        }
        yield critical_result(
            records, len(rows), asset_key=key, check_name=ROW_EXPECTATIONS, metadata=links
        )
        yield warning_result(
            records, len(rows), asset_key=key, check_name=ROW_WARNINGS, metadata=links
        )

    return expectations


def _leakage(naming: Naming) -> dg.AssetChecksDefinition:
    key = naming.key("raw_finetuning_data")

    @dg.multi_asset_check(
        name=naming.name("leakage"),
        specs=[
            dg.AssetCheckSpec(
                LEAKAGE,
                asset=key,
                blocking=True,
                partitions_def=naming.shards,
                additional_deps=[naming.key("validation_data")],
                description="No training row is a validation row, letter case, width and "
                "punctuation aside.",
            ),
            dg.AssetCheckSpec(
                NEAR_LEAKAGE,
                asset=key,
                partitions_def=naming.shards,
                additional_deps=[naming.key("validation_data")],
                description="No training row has a validation row's prompt, or most of its words "
                "in the same order.",
            ),
        ],
        ins={
            "raw_finetuning_data": dg.AssetIn(key=key),
            "validation_data": dg.AssetIn(key=naming.key("validation_data")),
        },
    )
    def leakage(
        raw_finetuning_data: pl.DataFrame, validation_data: pl.DataFrame, warnings: WarningPolicy
    ) -> Iterator[dg.AssetCheckResult]:
        from forvalue_dagster.quality.leakage import find_leaks

        leaks = find_leaks(raw_finetuning_data, validation_data, warnings.near_leak_similarity)
        rows = len(raw_finetuning_data)
        for name, found, what in (
            (LEAKAGE, leaks.filter(pl.col("kind") == "row"), "are validation rows"),
            (
                NEAR_LEAKAGE,
                leaks.filter(pl.col("kind") != "row"),
                "share the prompt or most words of a validation row",
            ),
        ):
            places = found["row"].head(MAX_ROWS_LISTED).to_list()
            named = f" (rows {', '.join(map(str, places))}{'…' if len(found) > 20 else ''})"
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=name,
                passed=found.is_empty(),
                severity=dg.AssetCheckSeverity.ERROR
                if name == LEAKAGE
                else dg.AssetCheckSeverity.WARN,
                description=f"{len(found)} of {rows} rows {what}"
                + (f"{named}. Take them out of the one or the other." if len(found) else "."),
                metadata={
                    "leaks": len(found),
                    "rows": rows,
                    "validation_rows": len(validation_data),
                    **listing("leaking_rows", found.with_columns(pl.col("similarity").round(3))),
                },
            )

    return leakage
