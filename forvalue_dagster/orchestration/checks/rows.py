"""Asset checks on raw and validation rows: Great Expectations, and how they were read."""

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
ROW_READING = "row_reading"
# Metadata key of a materialisation: how its rows were read, for the check.
FORM = "form"
UNUSED_LIKE_CONVERSATION = "columns_like_conversation"

Suite = Union[str, Path, "ExpectationSuite"]


def build_row_checks(naming: Naming, suites: Sequence[Suite]) -> list[dg.AssetChecksDefinition]:
    """Build the checks of the raw rows, with a result for each shard, and of the validation rows.

    Args:
        naming: the graph's names.
        suites: the user's own suites, in addition to the default one: JSON files or objects.
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
    reading = dg.AssetCheckSpec(
        ROW_READING,
        asset=key,
        partitions_def=shards,
        description="No unused column looks like a part of the conversation, and the rows have the "
        "same form as before.",
    )

    @dg.multi_asset_check(
        name=naming.name(f"{asset}_expectations"),
        specs=[
            dg.AssetCheckSpec(
                ROW_EXPECTATIONS,
                asset=key,
                blocking=True,
                partitions_def=shards,
                description="Critical expectations: columns and types are right, and there are "
                "rows, each once, readable, with a response.",
            ),
            dg.AssetCheckSpec(
                ROW_WARNINGS,
                asset=key,
                partitions_def=shards,
                description="Other expectations: few duplicates, usual lengths and order of roles, "
                "no broken encoding, no patterns of personal data.",
            ),
            *([] if shards is None else [reading]),
        ],
        ins={"rows": dg.AssetIn(key=key)},
    )
    @naming.own
    def expectations(
        context: dg.AssetCheckExecutionContext, rows: pl.DataFrame, storage: Storage
    ) -> Iterator[dg.AssetCheckResult]:
        title = context.partition_key if context.has_partition_key else "all"
        if shards is not None:
            yield check_reading(context.instance, key, context.partition_key)
        yield from check_rows(key, rows, storage, own_suites, title)

    return expectations


def check_reading(
    instance: dg.DagsterInstance, key: dg.AssetKey, shard: str
) -> dg.AssetCheckResult:
    """Check whether the rows of a shard may have been misread.

    Args:
        instance: the Dagster instance.
        key: key of the asset.
        shard: the materialised shard.
    """
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard]), limit=2
    ).records
    events = [record.asset_materialization for record in records]
    now, *before = [{} if event is None else event.metadata for event in events] or [{}]
    said = []
    columns: Any = now[UNUSED_LIKE_CONVERSATION].value if UNUSED_LIKE_CONVERSATION in now else []
    if columns:
        said.append(
            f"unused columns that look like a part of the conversation: {', '.join(columns)}; "
            "name them in the configuration, or in ignore_columns"
        )
    # A shard without a readable row has no form, and neither has one from an earlier version.
    forms = [metadata[FORM].value for metadata in (now, *before) if FORM in metadata]
    if len(forms) > 1 and forms[0] != forms[1]:
        said.append(f"the form is {forms[0]}, and was {forms[1]}; see that it is meant")
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=ROW_READING,
        passed=not said,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{'; '.join(said)}."
        if said
        else "No unused column looks like a part of the conversation, and the form has not "
        "changed.",
    )


def written_suites(suites: Sequence[Suite]) -> list[Any]:
    """Return suites as plain values: rows are checked again when a suite changes."""
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
    """Check rows against all suites, and write pages with the results.

    Args:
        key: key of the asset.
        rows: canonical rows.
        storage: the storage to write the pages to.
        own_suites: the user's own suites, in addition to the default one.
        title: name of the shard in the pages.
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
