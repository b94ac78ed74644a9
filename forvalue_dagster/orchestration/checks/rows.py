"""Asset checks on rows as they come: Great Expectations."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import dagster as dg
import polars as pl

from forvalue_dagster.orchestration.naming import ROW_EXPECTATIONS, Naming
from forvalue_dagster.storage.location import Storage

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

ROW_WARNINGS = "row_warnings"

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
    @naming.own
    def expectations(
        context: dg.AssetCheckExecutionContext, rows: pl.DataFrame, storage: Storage
    ) -> Iterator[dg.AssetCheckResult]:
        title = context.partition_key if context.has_partition_key else "all"
        yield from check_rows(key, rows, storage, own_suites, title)

    return expectations


def written_suites(suites: Sequence[Suite]) -> list[Any]:
    """Return suites as they are written: rows are held to changed ones again."""
    return [
        suite.to_json_dict()
        if not isinstance(suite, str | Path)
        else Path(suite).read_text("utf-8")
        if Path(suite).exists()
        else None
        for suite in suites
    ]


def check_rows(
    key: dg.AssetKey, rows: pl.DataFrame, storage: Storage, own_suites: Sequence[Suite], title: str
) -> Iterator[dg.AssetCheckResult]:
    """Hold rows to all suites, and write the pages of what came of it.

    Args:
        key: of the asset.
        rows: canonical ones.
        storage: that the pages go to.
        own_suites: the user's, beside the default one.
        title: the shard, in the pages.
    """
    from forvalue_dagster.quality.expectations import critical_result, validate, warning_result
    from forvalue_dagster.quality.row_facts import row_facts
    from forvalue_dagster.quality.suites import default_suite, read_suite

    suites = [read_suite(suite) if isinstance(suite, str | Path) else suite for suite in own_suites]
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
    yield warning_result(records, len(rows), asset_key=key, check_name=ROW_WARNINGS, metadata=links)
