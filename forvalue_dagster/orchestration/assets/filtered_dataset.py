"""The filtered dataset: kept rows, dropped rows and the manifest."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS, group_columns
from forvalue_dagster.orchestration.assets.decision import (
    content_version,
    decide,
    policy_in_force,
    stop_or_exclude,
)
from forvalue_dagster.orchestration.assets.filtered_rows import store_rows, write_lines
from forvalue_dagster.orchestration.assets.made_of import shared, show_overrides, traced
from forvalue_dagster.orchestration.assets.refining import describe_refinement, refine_shards
from forvalue_dagster.orchestration.automation.conditions import fan_in
from forvalue_dagster.orchestration.checks.judging import StoredProbe, judge_shards, shard_table
from forvalue_dagster.orchestration.checks.selection import SELECTION, check_selection
from forvalue_dagster.orchestration.display.plots import histogram
from forvalue_dagster.orchestration.display.report import build_report, render_report
from forvalue_dagster.orchestration.naming import (
    TRAINING_SHARDS,
    Naming,
    code_version,
    overrides,
    resolved,
)
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.policies import (
    GatePolicy,
    SelectionPolicy,
    WarningPolicy,
)
from forvalue_dagster.orchestration.options.resources import PROFILE_SETTINGS, Valuation, settings
from forvalue_dagster.orchestration.trained_adapter import model_dependency
from forvalue_dagster.quality.certificate import signed
from forvalue_dagster.quality.manifest import CERTIFIED, MANIFEST, Manifest
from forvalue_dagster.quality.verdicts import judge_kept
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import (
    StoredTable,
    file_path,
    table_path,
    unchanged,
)
from forvalue_dagster.storage.tensors import TensorFile

Policies = dict[str, dg.ConfigurableResource[Any]]
# One type for all instances: names of types must be unique in a project.
_TABLE = dg.PythonObjectDagsterType(StoredTable)
_DROP_REASON = {"drop_reason": "why the row is not in the filtered dataset"}


def build_filtered_dataset(
    naming: Naming,
    plan: Plan,
    selection: SelectionPolicy,
    gate: GatePolicy,
    storage: Storage,
) -> dg.AssetsDefinition:
    """Build `filtered_dataset` and `dropped_rows`, with the blocking check `certified`.

    Next to the tables are `filtered_dataset.jsonl` in the source's own form, `dropped_rows.jsonl`
    with the reasons, `filtered_dataset.report.html` (`display/report.py`), and
    `filtered_dataset.manifest.json`: every shard with the materialisations it was read from, the
    verdict, the figure and the threshold. The manifest is also metadata of the dataset, where the
    gate in front of a consumer reads it.

    Args:
        naming: the graph's names.
        plan: the graph's plan.
        selection: the selection policy.
        gate: the gate policy, which also decides what automation waits for.
        storage: location of the files.
    """
    defined: Policies = {"gate": gate, "selection": selection, "storage": storage}
    allows_overrides = gate.allow_overrides
    scores_key = naming.key("value_scores")
    filtered_key, dropped_key = naming.key("filtered_dataset"), naming.key("dropped_rows")
    # A shard that is registered but not valued yet is listed in the manifest; it is no I/O error.
    every_shard = {"allow_missing_partitions": True}
    refining = plan.refine is not None
    table: dict[str, Any] = {
        "dagster_type": _TABLE,
        "io_manager_key": naming.resource("parquet_io_manager"),
        "code_version": code_version(
            resolved(selection), resolved(gate), plan.refine and plan.refine.model_dump()
        ),
        "automation_condition": fan_in(
            gate.on_blocked_shard, ignoring=naming.files, shared=naming.shared
        ),
        "kinds": {"polars", "parquet"},
    }

    @dg.multi_asset(
        name=naming.name("select_rows"),
        group_name=naming.group,
        ins={
            "value_scores": dg.AssetIn(key=scores_key, metadata=every_shard),
            "raw_finetuning_data": dg.AssetIn(
                key=naming.key("raw_finetuning_data"), metadata=every_shard
            ),
            "validation_profile": dg.AssetIn(key=naming.key("validation_profile")),
        },
        outs={
            "filtered_dataset": dg.AssetOut(
                key=filtered_key,
                description="The rows worth finetuning on, each with its scores.",
                metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS},
                **table,
            ),
            "dropped_rows": dg.AssetOut(
                key=dropped_key,
                description="Every other row, with the reason why it was dropped.",
                metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS | _DROP_REASON},
                **table,
            ),
        },
        deps=[
            *([] if naming.upstream_shards else [naming.key(TRAINING_SHARDS)]),
            *(model_dependency(naming, plan) if refining else []),
        ],
        pool=plan.compute.pool_of("filtered_dataset") if refining else None,
        op_tags=plan.compute.tags("filtered_dataset") if refining else None,
        retry_policy=plan.compute.retry_policy if refining else None,
        check_specs=[
            dg.AssetCheckSpec(
                CERTIFIED,
                asset=filtered_key,
                blocking=True,
                description="Every shard in the filtered dataset passed its noise gate, at least "
                "one row was kept, and the estimated noise of the kept rows is within the limit.",
            ),
            dg.AssetCheckSpec(
                SELECTION,
                asset=filtered_key,
                description="The kept rows have a higher mean value than all rows, and no shard "
                "that passed, and no validation group, loses too much.",
            ),
        ],
    )
    @naming.own
    def filtered_dataset(
        context: dg.AssetExecutionContext,
        value_scores: dict[str, pl.LazyFrame],
        raw_finetuning_data: dict[str, pl.LazyFrame],
        validation_profile: TensorFile,
        selection: SelectionPolicy,
        gate: GatePolicy,
        warnings: WarningPolicy,
        storage: Storage,
        valuation: Valuation,
    ) -> Iterator[dg.Output[StoredTable] | dg.AssetCheckResult]:
        scores = {
            shard: table.collect()
            for shard, table in sorted(value_scores.items())
            if shard in raw_finetuning_data
        }
        registered = naming.registered(context.instance)
        missing = sorted(set(registered) - set(scores))
        probe = StoredProbe.of(validation_profile)
        entries = [
            traced(context.instance, entry, naming, plan)
            for entry in judge_shards(
                context.instance, naming, scores, raw_finetuning_data, probe, gate
            )
        ]
        stop_or_exclude(context, entries, missing, gate.on_blocked_shard)
        policy = policy_in_force(context, selection, entries)

        refinement = None
        passed = {entry.shard: scores[entry.shard] for entry in entries if entry.passed}
        if plan.refine is not None and passed:
            refined, refinement = refine_shards(
                passed,
                raw_finetuning_data,
                policy,
                plan.refine,
                naming=naming,
                plan=plan,
                valuation=valuation,
                storage=storage,
            )
            scores |= refined
            context.log.info(
                f"{refinement.refined} of {refinement.rows} rows computed exactly; the boundary "
                f"of the selection is {refinement.boundary}."
            )
        decided = decide(scores, entries, policy)
        kept = decided.filter(pl.col("drop_reason").is_null()).drop("drop_reason")
        dropped = decided.filter(pl.col("drop_reason").is_not_null())
        raw_key = naming.key("raw_finetuning_data")
        with unchanged(*(table_path(storage, raw_key, shard) for shard in scores)):
            tables, digests = store_rows(
                storage, raw_finetuning_data, (filtered_key, kept), (dropped_key, dropped)
            )
        manifest = Manifest(
            shards=tuple(entries),
            missing_shards=tuple(missing),
            on_blocked_shard=gate.on_blocked_shard,
            partitions=naming.dynamic_shards,
            rows={"in": len(decided), "kept": len(kept), "dropped": len(dropped)},
            selection=resolved(policy),
            refinement=None if refinement is None else asdict(refinement),
            policy=resolved(gate, without=("allow_overrides", "override_reason")),
            overrides=overrides(
                defined, {"gate": gate, "selection": selection, "storage": storage}
            ),
            overrides_allowed=allows_overrides,
            override_reason=gate.override_reason,
            made_from=shared(context.instance, naming, plan),
            files=digests,
            dataset=filtered_key.to_user_string(),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            noise=judge_kept(
                [entry.verdict for entry in entries if entry.passed],
                scores,
                kept,
                probe.noise,
                gate.max_noise_fraction,
            ),
        )
        files = {
            "json_lines": file_path(storage, filtered_key, ".jsonl"),
            "dropped_json_lines": file_path(storage, dropped_key, ".jsonl"),
            "manifest_file": file_path(storage, filtered_key, ".manifest.json"),
            "report": file_path(storage, filtered_key, ".report.html"),
            "report_json": file_path(storage, filtered_key, ".report.json"),
        }
        plain = signed(manifest.to_json())
        write_lines(files["manifest_file"], [json.dumps(plain, indent=2, sort_keys=True)])
        groups = group_columns(kept.columns)
        report = build_report(
            manifest,
            decided,
            scores,
            groups,
            {
                "gate": resolved(gate),
                "valuation": settings(valuation, PROFILE_SETTINGS),
                "storage": {"base_dir": storage.base_dir},
            },
        )
        write_lines(files["report_json"], [json.dumps(report, indent=2, sort_keys=True)])
        write_lines(files["report"], [render_report(report, decided)])

        for key, table in ((filtered_key, kept), (dropped_key, dropped)):
            context.set_data_version(key, content_version(table, entries))
        yield dg.Output(
            tables[filtered_key],
            output_name="filtered_dataset",
            metadata={
                "shards": shard_table(entries),
                "values": histogram(
                    {"kept": kept["value"], "dropped": dropped["value"]},
                    title="Value of the rows kept and dropped",
                    unit="value",
                ),
                "response_tokens": int(kept["response_tokens"].sum()),
                **show_overrides(manifest),
                **(describe_refinement(refinement) if refinement else {}),
                **{name: dg.MetadataValue.path(str(path)) for name, path in files.items()},
                # For the gate; people read the table above.
                MANIFEST: dg.MetadataValue.json(plain),
            },
        )
        yield dg.Output(
            tables[dropped_key],
            output_name="dropped_rows",
            metadata={"reasons": _reason_table(dropped)},
        )
        yield certify(filtered_key, manifest)
        yield check_selection(filtered_key, kept, passed, groups, warnings)

    return filtered_dataset


def certify(key: dg.AssetKey, manifest: Manifest) -> dg.AssetCheckResult:
    """Return the result of the check `certified` for a manifest."""
    objections = manifest.objections()
    left_out = f"; left out: {'; '.join(manifest.blocked)}" if manifest.blocked else ""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=CERTIFIED,
        passed=not objections,
        description="; ".join(objections)
        or f"{manifest.rows['kept']} rows of the shards that passed "
        f"({', '.join(manifest.passed)}); {manifest.noise.summary if manifest.noise else ''}"
        f"{left_out}.",
        metadata={
            "shards_passed": len(manifest.passed),
            "shards_left_out": len(manifest.blocked),
            **_noise_figures(manifest),
        },
    )


def _noise_figures(manifest: Manifest) -> dict[str, float]:
    figures = {} if manifest.noise is None else asdict(manifest.noise)
    return {name: round(value, 4) for name, value in figures.items() if value is not None}


def _reason_table(dropped: pl.DataFrame) -> dg.TableMetadataValue:
    counts = dropped["drop_reason"].value_counts(sort=True)
    return dg.MetadataValue.table(
        [dg.TableRecord(record) for record in counts.to_dicts()],
        schema=dg.TableSchema([dg.TableColumn("drop_reason"), dg.TableColumn("count", "int")]),
    )
