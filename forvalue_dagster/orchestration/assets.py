"""The assets that turn raw rows into value scores. Bodies only call and report."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Callable
from typing import Any

import dagster as dg
import polars as pl

from forvalue_dagster.data.chat import SKIP_REASONS
from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.plots import histogram
from forvalue_dagster.orchestration.progress import log_progress
from forvalue_dagster.orchestration.resources import RowSource, Valuation
from forvalue_dagster.quality.verdicts import ATYPICAL_QUANTILE, mark_atypical
from forvalue_dagster.storage.tensors import TensorFile

# Raised when the meaning of a stored table changes: Dagster then shows what is out of date.
CODE_VERSION = "1"
EXTREMES = 5


def build_row_assets(naming: Naming) -> list[dg.AssetsDefinition]:
    """Build `raw_finetuning_data` (a partition each shard) and `validation_data`."""

    @dg.asset(
        key=naming.key("raw_finetuning_data"),
        group_name=naming.group,
        kinds={"polars", "parquet"},
        partitions_def=naming.shards,
        io_manager_key="parquet_io_manager",
        code_version=CODE_VERSION,
        metadata={"descriptions": DESCRIPTIONS},
        description="Finetuning rows as conversations, with the source's own columns.",
    )
    def raw_finetuning_data(
        context: dg.AssetExecutionContext, training_rows: RowSource
    ) -> pl.DataFrame:
        rows = training_rows.read(context.partition_key)
        context.add_output_metadata(_describe_rows(rows))
        return rows

    @dg.asset(
        key=naming.key("validation_data"),
        group_name=naming.group,
        kinds={"polars", "parquet"},
        io_manager_key="parquet_io_manager",
        code_version=CODE_VERSION,
        metadata={"descriptions": DESCRIPTIONS},
        description="The trusted rows that training rows are valued against.",
    )
    def validation_data(
        context: dg.AssetExecutionContext, validation_rows: RowSource
    ) -> pl.DataFrame:
        rows = validation_rows.read()
        groups = rows["group"].drop_nulls().value_counts(sort=True)
        metadata = _describe_rows(rows)
        if len(groups):
            metadata["groups"] = dg.MetadataValue.table(
                [dg.TableRecord(record) for record in groups.to_dicts()]
            )
        context.add_output_metadata(metadata)
        return rows

    return [raw_finetuning_data, validation_data]


def build_valuation_assets(
    naming: Naming, pool: str | None, op_tags: dict[str, str] | None
) -> list[dg.AssetsDefinition]:
    """Build `validation_profile`, `sample_features` and `value_scores`: the steps with a model."""
    raw, validation = naming.key("raw_finetuning_data"), naming.key("validation_data")
    profile_key = naming.key("validation_profile")

    def model_asset(**options: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        decorator: Callable[[Callable[..., Any]], dg.AssetsDefinition] = dg.asset(
            group_name=naming.group,
            code_version=CODE_VERSION,
            pool=pool,
            op_tags=op_tags,
            **options,
        )
        return decorator

    @model_asset(
        key=profile_key,
        ins={"validation_data": dg.AssetIn(key=validation)},
        kinds={"torch", "safetensors"},
        io_manager_key="tensor_io_manager",
        description="The validation rows in closed form: mean gradient of each group, second "
        "moment of the hidden states, forward statistics.",
    )
    def validation_profile(
        context: dg.AssetExecutionContext, validation_data: pl.DataFrame, valuation: Valuation
    ) -> TensorFile:
        from forvalue_dagster.engine.scoring import build_profile

        profile, outcome = build_profile(
            valuation.load(),
            validation_data,
            valuation.options(),
            log_progress(context.log, len(validation_data)),
        )
        nll = pl.Series(profile.statistics["nll"].numpy())
        context.add_output_metadata(
            {
                **_outcome_counts(outcome),
                "groups": ", ".join(
                    f"{group} ({count})"
                    for group, count in zip(profile.groups, profile.counts, strict=True)
                ),
                "model": valuation.name,
                "nll": histogram(
                    {"validation rows": nll},
                    title="Mean response NLL of the validation rows",
                    unit="nats per token",
                    marks={"95th percentile": _quantile(nll)},
                ),
            }
        )
        return TensorFile(*profile.to_tensors())

    @model_asset(
        key=naming.key("sample_features"),
        ins={"raw_finetuning_data": dg.AssetIn(key=raw)},
        kinds={"torch", "parquet"},
        partitions_def=naming.shards,
        io_manager_key="parquet_io_manager",
        metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS},
        description="What one forward pass says of each row, whatever the validation set.",
    )
    def sample_features(
        context: dg.AssetExecutionContext, raw_finetuning_data: pl.DataFrame, valuation: Valuation
    ) -> pl.DataFrame:
        from forvalue_dagster.engine.scoring import forward_statistics

        features = forward_statistics(
            valuation.load(),
            raw_finetuning_data,
            valuation.options(),
            log_progress(context.log, len(raw_finetuning_data)),
        )
        context.add_output_metadata(
            {
                **_outcome_counts(features),
                "response_tokens": int(features["response_tokens"].sum()),
                "nll": histogram(
                    {"rows": features["nll"]},
                    title="Mean response NLL",
                    unit="nats per token",
                ),
            }
        )
        return features

    @model_asset(
        key=naming.key("value_scores"),
        ins={
            "raw_finetuning_data": dg.AssetIn(key=raw),
            "validation_profile": dg.AssetIn(key=profile_key),
        },
        kinds={"torch", "parquet"},
        partitions_def=naming.shards,
        io_manager_key="parquet_io_manager",
        metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS},
        description="How much a gradient step on each row raises the likelihood of the validation "
        "rows.",
    )
    def value_scores(
        context: dg.AssetExecutionContext,
        raw_finetuning_data: pl.DataFrame,
        validation_profile: TensorFile,
        valuation: Valuation,
    ) -> pl.DataFrame:
        from forvalue_dagster.engine.scoring import score_rows
        from forvalue_dagster.valuation.profile import ValidationProfile

        profile = ValidationProfile.from_tensors(
            validation_profile.tensors, validation_profile.metadata
        )
        loaded = valuation.load()
        scores = score_rows(
            loaded,
            raw_finetuning_data,
            profile.to(loaded.device),
            valuation.options(),
            log_progress(context.log, len(raw_finetuning_data)),
        )
        scores = mark_atypical(scores, pl.Series(profile.statistics["nll"].numpy()))
        ranked = scores.filter(pl.col("status") == "scored").sort("value", descending=True)
        context.add_output_metadata(
            {
                **_outcome_counts(scores),
                "harmful_share": _share(ranked["value"] < 0),
                "values": histogram(
                    {"rows": scores["value"]}, title="Value of the shard's rows", unit="value"
                ),
                "most_valuable": _extremes(ranked.head(EXTREMES)),
                "least_valuable": _extremes(ranked.tail(EXTREMES).reverse()),
            }
        )
        return scores

    return [validation_profile, sample_features, value_scores]


def _describe_rows(rows: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    sizes = rows["messages"].str.len_chars()
    return {
        "rows": dg.MetadataValue.int(len(rows)),
        "unreadable_rows": dg.MetadataValue.int(len(rows) - rows["problem"].null_count()),
        "duplicate_rows": dg.MetadataValue.int(
            len(rows) - rows["sample_id"].null_count() - rows["sample_id"].drop_nulls().n_unique()
        ),
        "lengths": histogram({"rows": sizes}, title="Length of conversations", unit="characters"),
    }


def _outcome_counts(table: pl.DataFrame) -> dict[str, dg.MetadataValue]:
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


def _extremes(rows: pl.DataFrame) -> dg.MetadataValue:
    shown = rows.select(
        "sample_id", "row", pl.col("value", "alignment", "nll").round(3), "response_tokens"
    )
    return dg.MetadataValue.table(
        records=[dg.TableRecord(record) for record in shown.to_dicts()],
        schema=dg.TableSchema(
            [dg.TableColumn(name, str(dtype)) for name, dtype in shown.schema.items()]
        ),
    )


def _share(flags: pl.Series) -> float:
    return round(float(flags.mean() or 0.0), 4)  # type: ignore[arg-type]


def _quantile(values: pl.Series) -> float:
    return float(values.quantile(ATYPICAL_QUANTILE, interpolation="linear") or 0.0)
