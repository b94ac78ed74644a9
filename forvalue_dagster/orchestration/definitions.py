"""One call that assembles the whole graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import dagster as dg

from forvalue_dagster.orchestration.assets import build_row_assets, build_valuation_assets
from forvalue_dagster.orchestration.checks import build_row_checks, build_score_checks
from forvalue_dagster.orchestration.filtering import build_filtered_dataset
from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.resources import (
    GatePolicy,
    RowSource,
    SelectionPolicy,
    Storage,
    Valuation,
)
from forvalue_dagster.orchestration.sensors import build_shard_sensor
from forvalue_dagster.storage.parquet import ParquetIOManager
from forvalue_dagster.storage.tensors import TensorIOManager


def valuation_definitions(
    *,
    training_rows: RowSource,
    validation_rows: RowSource,
    storage: Storage,
    valuation: Valuation | None = None,
    selection: SelectionPolicy | None = None,
    gate: GatePolicy | None = None,
    key_prefix: Sequence[str] = (),
    group_name: str = "forvalue",
    pool: str | None = None,
    op_tags: dict[str, str] | None = None,
) -> dg.Definitions:
    """Build assets, checks, jobs, a sensor and resources that value and filter finetuning data.

    Args:
        training_rows: the folder whose files are the shards.
        validation_rows: the trusted rows.
        storage: where tables and tensors are written.
        valuation: the model, and how rows are valued.
        selection: which rows are kept.
        gate: what blocks a shard.
        key_prefix: put before every asset key.
        group_name: the group in the UI.
        pool: concurrency pool of the steps that run the model.
        op_tags: tags of those steps, for an executor or launcher.

    Returns:
        Definitions with the jobs `forvalue_profile` (validation rows), `forvalue_shard` (one
        shard, to its scores and checks) and `forvalue_filter` (the dataset).
    """
    naming = Naming(tuple(key_prefix), group_name)
    assets = [
        *build_row_assets(naming),
        *build_valuation_assets(naming, pool, op_tags),
        build_filtered_dataset(naming),
    ]
    with warnings.catch_warnings():
        # Partitions on checks are in preview in Dagster; without them a gate on shards leaks.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        checks = [*build_row_checks(naming), *build_score_checks(naming)]
    jobs = _jobs(naming)
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=jobs,
        sensors=[build_shard_sensor(naming, jobs[1])],
        resources={
            "training_rows": training_rows,
            "validation_rows": validation_rows,
            "valuation": valuation or Valuation(),
            "selection": selection or SelectionPolicy(),
            "gate": gate or GatePolicy(),
            "storage": storage,
            "parquet_io_manager": ParquetIOManager(
                base_dir=storage.base_dir, storage_options=storage.storage_options or None
            ),
            "tensor_io_manager": TensorIOManager(
                base_dir=storage.base_dir, cloud_storage_options=storage.storage_options
            ),
        },
    )


def _jobs(naming: Naming) -> list[dg.UnresolvedAssetJobDefinition]:
    def job(name: str, description: str, *assets: str) -> dg.UnresolvedAssetJobDefinition:
        selection = dg.AssetSelection.assets(*(naming.key(asset) for asset in assets))
        return dg.define_asset_job(naming.name(name), selection, description=description)

    return [
        job(
            "profile",
            "Read the validation rows and make their profile.",
            "validation_data",
            "validation_profile",
        ),
        job(
            "shard",
            "Read one shard, compute its features and value scores, check them.",
            "raw_finetuning_data",
            "sample_features",
            "value_scores",
        ),
        job(
            "filter",
            "Build the filtered dataset from the shards that passed.",
            "filtered_dataset",
            "dropped_rows",
        ),
    ]
