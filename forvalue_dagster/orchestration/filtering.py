"""The filtered dataset: the rows kept of the shards that passed, the rows dropped, a manifest."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.read import DESCRIPTIONS, source_lines
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.engine.selection import select_rows
from forvalue_dagster.orchestration.naming import CODE_VERSION, Naming, Plan
from forvalue_dagster.orchestration.plots import histogram
from forvalue_dagster.orchestration.refining import describe_refinement, refine_shards
from forvalue_dagster.orchestration.resources import (
    GatePolicy,
    SelectionPolicy,
    Storage,
    Valuation,
)
from forvalue_dagster.orchestration.warm_up import model_dependency
from forvalue_dagster.quality.verdicts import ShardVerdict, judge_shard
from forvalue_dagster.storage.atomic import atomic_write

CERTIFIED = "certified"
PLACE = ["shard", "row"]
_KEPT_SCORES = ["value", "alignment", "value_per_token", "nll", "response_tokens", "truncated"]
_DROP_REASON = {"drop_reason": "why the row is not in the filtered dataset"}


def build_filtered_dataset(naming: Naming, plan: Plan) -> dg.AssetsDefinition:
    """Build `filtered_dataset` and `dropped_rows`, with the blocking check `certified`.

    Beside the tables lie `filtered_dataset.jsonl` in the source's own form, `dropped_rows.jsonl`
    with the reasons, and `filtered_dataset.manifest.json`: every shard with the materialisation
    of its scores, the verdict, the figure and the threshold.
    """
    scores_key = naming.key("value_scores")
    filtered_key, dropped_key = naming.key("filtered_dataset"), naming.key("dropped_rows")
    # A shard that is registered but not valued yet is named in the manifest, not an I/O error.
    every_shard = {"allow_missing_partitions": True}
    refining = plan.refine is not None
    table: dict[str, Any] = {
        "dagster_type": pl.LazyFrame,
        "io_manager_key": "parquet_io_manager",
        "code_version": CODE_VERSION,
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
        deps=[naming.key("validation_profile"), *model_dependency(naming, plan)]
        if refining
        else [],
        pool=plan.pool if refining else None,
        op_tags=plan.op_tags if refining else None,
        check_specs=[
            dg.AssetCheckSpec(
                CERTIFIED,
                asset=filtered_key,
                blocking=True,
                description="Every shard in the filtered dataset passed its noise gate, and some "
                "row was kept.",
            )
        ],
    )
    def filtered_dataset(
        context: dg.AssetExecutionContext,
        value_scores: dict[str, pl.LazyFrame],
        raw_finetuning_data: dict[str, pl.LazyFrame],
        selection: SelectionPolicy,
        gate: GatePolicy,
        storage: Storage,
        valuation: Valuation,
    ) -> Iterator[dg.Output[pl.LazyFrame] | dg.AssetCheckResult]:
        scores = {
            shard: table.collect()
            for shard, table in sorted(value_scores.items())
            if shard in raw_finetuning_data
        }
        registered = naming.shards.get_partition_keys(dynamic_partitions_store=context.instance)
        missing = sorted(set(registered) - set(scores))
        verdicts = [judge_shard(name, rows, gate.max_noise_share) for name, rows in scores.items()]
        _stop_or_exclude(context, verdicts, missing, gate.on_blocked_shard)

        refinement = None
        passed = {v.shard: scores[v.shard] for v in verdicts if v.passed}
        if plan.refine is not None and passed:
            refined, refinement = refine_shards(
                passed,
                raw_finetuning_data,
                selection.selection(),
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
        decided = _decide(scores, verdicts, selection)
        kept = decided.filter(pl.col("drop_reason").is_null()).drop("drop_reason")
        dropped = decided.filter(pl.col("drop_reason").is_not_null())
        manifest = {
            "shards": [
                asdict(verdict) | {"scores": _materialization(context, scores_key, verdict.shard)}
                for verdict in verdicts
            ],
            "missing_shards": missing,
            "on_blocked_shard": gate.on_blocked_shard,
            "selection": asdict(selection.selection()),
            "refinement": refinement and asdict(refinement),
            "rows": {"in": len(decided), "kept": len(kept), "dropped": len(dropped)},
        }
        files = {
            "json_lines": storage.path(*filtered_key.path).with_suffix(".jsonl"),
            "dropped_json_lines": storage.path(*dropped_key.path).with_suffix(".jsonl"),
            "manifest": storage.path(*filtered_key.path).with_suffix(".manifest.json"),
        }
        _write_lines(files["json_lines"], _kept_lines(raw_finetuning_data, kept))
        _write_lines(files["dropped_json_lines"], _dropped_lines(raw_finetuning_data, dropped))
        _write_lines(files["manifest"], [json.dumps(manifest, indent=2, sort_keys=True)])

        yield dg.Output(
            _with_text(raw_finetuning_data, kept),
            output_name="filtered_dataset",
            metadata={
                "dagster/row_count": len(kept),
                "response_tokens": int(kept["response_tokens"].sum()),
                "shards": _shard_table(verdicts),
                **(describe_refinement(refinement) if refinement else {}),
                "values": histogram(
                    {"kept": kept["value"], "dropped": dropped["value"]},
                    title="Value of the rows kept and dropped",
                    unit="value",
                ),
                **{name: dg.MetadataValue.path(str(path)) for name, path in files.items()},
            },
        )
        yield dg.Output(
            _with_text(raw_finetuning_data, dropped),
            output_name="dropped_rows",
            metadata={"dagster/row_count": len(dropped), "reasons": _reason_table(dropped)},
        )
        yield certify(filtered_key, manifest)

    return filtered_dataset


def certify(key: dg.AssetKey, manifest: Mapping[str, Any]) -> dg.AssetCheckResult:
    """Derive the check `certified` from a manifest alone."""
    shards = manifest["shards"]
    excluding = manifest["on_blocked_shard"] == "exclude"
    passed = [entry["shard"] for entry in shards if entry["passed"]]
    blocked = [entry["shard"] for entry in shards if not entry["passed"]]
    blocked += manifest["missing_shards"]
    rows = manifest["rows"]["kept"]
    left_out = f"; left out: {', '.join(blocked)}" if blocked else ""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=CERTIFIED,
        passed=rows > 0 and bool(passed) and (excluding or not blocked),
        description=f"{rows} rows of the shards that passed ({', '.join(passed)}){left_out}.",
        metadata={"shards_passed": len(passed), "shards_left_out": len(blocked)},
    )


def _stop_or_exclude(
    context: dg.AssetExecutionContext,
    verdicts: Iterable[ShardVerdict],
    missing: Iterable[str],
    on_blocked_shard: str,
) -> None:
    """Fail the run if a shard is blocked and that stops the dataset; say so in any case."""
    blocked = [verdict.summary for verdict in verdicts if not verdict.passed]
    blocked += [f"shard {shard!r}: not valued yet" for shard in missing]
    if not blocked:
        return
    listing = "; ".join(blocked)
    if on_blocked_shard == "fail":
        raise dg.Failure(
            f"Blocked: {listing}. Mend or remove these shards, or set on_blocked_shard to "
            "'exclude' to build the dataset without them.",
            allow_retries=False,
        )
    context.log.warning(f"Excluded from the filtered dataset: {listing}.")


def _decide(
    scores: Mapping[str, pl.DataFrame], verdicts: Iterable[ShardVerdict], selection: SelectionPolicy
) -> pl.DataFrame:
    """Return every row's place and scores with `drop_reason`, null for a kept row."""
    passed, blocked = [], []
    for verdict in verdicts:
        if verdict.passed:
            passed.append(scores[verdict.shard])
        else:
            reason = pl.lit(f"blocked: {verdict.summary}")
            blocked.append(scores[verdict.shard].with_columns(drop_reason=reason))
    if not passed:
        raise dg.Failure(
            "No shard passed its noise gate, so there is nothing to select from. See the checks "
            "of value_scores.",
            allow_retries=False,
        )
    selected = select_rows(pl.concat(passed, how="diagonal"), selection.selection())
    decided = pl.concat([selected, *blocked], how="diagonal")
    values = [name for name in decided.columns if name.startswith("value_")]
    return decided.select(*PLACE, *dict.fromkeys([*_KEPT_SCORES, *values]), "drop_reason")


def _with_text(raw: Mapping[str, pl.LazyFrame], decided: pl.DataFrame) -> pl.LazyFrame:
    """Join decided rows with their text; a source column of a score's name gives way to it."""
    scores = [name for name in decided.columns if name not in PLACE]
    parts = []
    for _, rows in sorted(raw.items()):
        own = rows.collect_schema().names()
        renamed = rows.rename({name: f"source.{name}" for name in own if name in scores})
        parts.append(renamed.join(decided.lazy(), on=PLACE, maintain_order="left"))
    return pl.concat(parts, how="diagonal_relaxed").drop("source")


def _kept_lines(raw: Mapping[str, pl.LazyFrame], kept: pl.DataFrame) -> Iterator[str]:
    """Yield the kept rows in their source's own form, one shard in memory at a time."""
    for _, rows in sorted(raw.items()):
        yield from source_lines(rows.join(kept.lazy(), on=PLACE, how="semi").collect())


def _dropped_lines(raw: Mapping[str, pl.LazyFrame], dropped: pl.DataFrame) -> Iterator[str]:
    """Yield {drop_reason, shard, row, source} of each dropped row; source is its own form."""
    for _, rows in sorted(raw.items()):
        frame = rows.join(dropped.lazy().select(PLACE), on=PLACE, how="semi").collect()
        reasons = frame.select(PLACE).join(
            dropped.select(*PLACE, "drop_reason"), on=PLACE, how="left", maintain_order="left"
        )
        for record, line in zip(reasons.to_dicts(), source_lines(frame), strict=True):
            yield json.dumps(record | {"source": line}, ensure_ascii=False, sort_keys=True)


def _write_lines(path: Any, lines: Iterable[str]) -> None:
    with atomic_write(path) as stream:
        for line in lines:
            stream.write(line.encode("utf-8", "surrogatepass") + b"\n")


def _materialization(
    context: dg.AssetExecutionContext, key: dg.AssetKey, shard: str
) -> dict[str, Any] | None:
    """Identify the materialisation of a shard's scores that is in force."""
    found = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard]), limit=1
    ).records
    return {"run_id": found[0].run_id, "storage_id": found[0].storage_id} if found else None


def _shard_table(verdicts: Iterable[ShardVerdict]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "shard": verdict.shard,
                    "verdict": "passed" if verdict.passed else "blocked",
                    "noise_share": round(verdict.noise_share, 4),
                    "max_noise_share": verdict.max_noise_share,
                    "scored": verdict.scored,
                }
            )
            for verdict in verdicts
        ]
    )


def _reason_table(dropped: pl.DataFrame) -> dg.TableMetadataValue:
    counts = dropped["drop_reason"].value_counts(sort=True)
    return dg.MetadataValue.table(
        [dg.TableRecord(record) for record in counts.to_dicts()],
        schema=dg.TableSchema([dg.TableColumn("drop_reason"), dg.TableColumn("count", "int")]),
    )
