"""The assets made by forward passes: the validation profile and the features of each shard."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from upath import UPath

from forvalue_dagster.data.read import DESCRIPTIONS
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.orchestration.describe import outcome_counts
from forvalue_dagster.orchestration.naming import CODE_VERSION, Naming, Plan
from forvalue_dagster.orchestration.plots import histogram
from forvalue_dagster.orchestration.progress import engine_warnings, log_progress
from forvalue_dagster.orchestration.resources import Valuation
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.orchestration.warm_up import model_dependency, trained_adapter
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.storage.tensors import TensorFile
from forvalue_dagster.valuation.noise import NoiseProbe


def build_profile_asset(naming: Naming, plan: Plan) -> dg.AssetsDefinition:
    """Build `validation_profile`."""

    @dg.asset(
        key=naming.key("validation_profile"),
        ins={"validation_data": dg.AssetIn(key=naming.key("validation_data"))},
        deps=model_dependency(naming, plan),
        group_name=naming.group,
        kinds={"torch", "safetensors"},
        io_manager_key="tensor_io_manager",
        code_version=CODE_VERSION,
        description="The validation rows in closed form: mean gradient of each group, second "
        "moment of the hidden states, forward statistics, token features.",
        pool=plan.pool,
        op_tags=plan.op_tags,
    )
    def validation_profile(
        context: dg.AssetExecutionContext,
        validation_data: pl.DataFrame,
        valuation: Valuation,
        storage: Storage,
    ) -> TensorFile:
        from forvalue_dagster.engine.scoring import build_profile

        adapter = trained_adapter(naming, plan, storage)
        with engine_warnings(context.log), valuation.session(adapter) as loaded:
            profile, outcome = build_profile(
                loaded,
                validation_data,
                valuation.options(),
                log_progress(context.log, len(validation_data)),
            )
        probe = profile.noise
        context.add_output_metadata(
            {
                **outcome_counts(outcome),
                "groups": ", ".join(
                    f"{group} ({count})"
                    for group, count in zip(profile.groups, profile.counts, strict=True)
                ),
                "model": valuation.name,
                "fingerprint": dg.MetadataValue.text(profile.fingerprint),
                "identity": profile.identity,
                "nll": histogram(
                    {"validation rows": pl.Series(profile.statistics["nll"].numpy())},
                    title="Mean response NLL of the validation rows",
                    unit="nats per token",
                ),
                **(_describe_probe(probe) if probe is not None else {"noise_probe": "none"}),
            }
        )
        return TensorFile(*profile.to_tensors())

    return validation_profile


def _describe_probe(probe: NoiseProbe) -> dict[str, Any]:
    """Show how well the probe tells damaged validation rows from clean ones."""
    damaged = probe.copies[np.isfinite(probe.copies)]
    return {
        "noise_probe_auc": round(probe.auc, 4),
        "noise_probe_by_recipe": dg.MetadataValue.table(
            [
                dg.TableRecord({"recipe": name, "auc": round(auc, 4)})
                for name, auc in probe.auc_by_recipe.items()
            ],
            dg.TableSchema([dg.TableColumn("recipe"), dg.TableColumn("auc", "float")]),
        ),
        "noise_probe": histogram(
            {"validation rows": pl.Series(probe.clean), "damaged copies": pl.Series(damaged)},
            title="What the noise probe, cross-fitted, says of the validation rows",
            unit="log-odds of damage",
        ),
    }


def build_feature_asset(naming: Naming, plan: Plan) -> dg.AssetsDefinition:
    """Build `sample_features`, a partition each shard."""

    @dg.asset(
        key=naming.key("sample_features"),
        ins={"raw_finetuning_data": dg.AssetIn(key=naming.key("raw_finetuning_data"))},
        deps=model_dependency(naming, plan),
        group_name=naming.group,
        kinds={"torch", "parquet"},
        partitions_def=naming.shards,
        io_manager_key="parquet_io_manager",
        code_version=CODE_VERSION,
        metadata={"descriptions": DESCRIPTIONS | COLUMN_DESCRIPTIONS},
        description="What one forward pass says of each row, whatever the validation set: "
        "statistics, and for each response token the rounded last hidden state and the largest "
        "prediction errors.",
        pool=plan.pool,
        op_tags=plan.op_tags,
    )
    def sample_features(
        context: dg.AssetExecutionContext,
        raw_finetuning_data: pl.DataFrame,
        valuation: Valuation,
        storage: Storage,
    ) -> StoredParts:
        from forvalue_dagster.engine.feature_table import PLAIN_COLUMNS
        from forvalue_dagster.engine.features import feature_parts

        parts = StoredParts(parts_folder(naming, storage, context.partition_key))
        adapter = trained_adapter(naming, plan, storage)
        with engine_warnings(context.log), valuation.session(adapter) as loaded:
            passes = feature_parts(
                loaded,
                raw_finetuning_data,
                valuation.options(),
                log_progress(context.log, len(raw_finetuning_data)),
                parts,
            )
            features = pl.concat(part.select(PLAIN_COLUMNS) for part in passes)
        if parts.reused:
            context.log.info(f"{parts.reused} of {len(parts.keys)} parts were finished already.")
        tokens = int(features["response_tokens"].sum())
        context.add_output_metadata(
            {
                **outcome_counts(features),
                "dagster/partition_row_count": len(features),
                "response_tokens": tokens,
                "parts": len(parts.keys),
                "parts_reused": parts.reused,
                "fingerprint": dg.MetadataValue.text(str(features["fingerprint"].first() or "")),
                "nll": histogram(
                    {"rows": features["nll"]},
                    title="Mean response NLL",
                    unit="nats per token",
                ),
            }
        )
        return parts

    return sample_features


def parts_folder(naming: Naming, storage: Storage, shard: str) -> UPath:
    """Return where the parts of a shard's features lie until they are all there."""
    return storage.path(*naming.key("sample_features").path, f".{shard}.parts")
