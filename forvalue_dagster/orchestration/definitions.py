"""`valuation_definitions`, the call that assembles the whole graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from warnings import catch_warnings, simplefilter

import dagster as dg

from forvalue_dagster.options.selection import Attribution, Refine
from forvalue_dagster.options.warm_up import WarmUp
from forvalue_dagster.orchestration.assets.attribution import build_attribution_assets
from forvalue_dagster.orchestration.assets.filtered_dataset import build_filtered_dataset
from forvalue_dagster.orchestration.assets.model_steps import (
    build_feature_asset,
    build_profile_asset,
)
from forvalue_dagster.orchestration.assets.rows import build_row_assets, build_source_assets
from forvalue_dagster.orchestration.assets.scores import build_score_asset
from forvalue_dagster.orchestration.assets.valuation_model import build_model_asset
from forvalue_dagster.orchestration.automation.alerts import build_alert_sensor
from forvalue_dagster.orchestration.automation.conditions import build_automation_sensor
from forvalue_dagster.orchestration.automation.estimate import build_estimate_job
from forvalue_dagster.orchestration.automation.retention import build_retention_job
from forvalue_dagster.orchestration.automation.sensors import (
    build_discovery_schedule,
    build_source_sensors,
)
from forvalue_dagster.orchestration.checks.fidelity import build_fidelity_check
from forvalue_dagster.orchestration.checks.profile import build_profile_check
from forvalue_dagster.orchestration.checks.rows import Suite, build_row_checks
from forvalue_dagster.orchestration.checks.scores import build_score_checks
from forvalue_dagster.orchestration.naming import ASSETS, Naming, Translation
from forvalue_dagster.orchestration.options.alerts import Alerts
from forvalue_dagster.orchestration.options.plan import Automation, Compute, Plan
from forvalue_dagster.orchestration.options.policies import (
    GatePolicy,
    SelectionPolicy,
    WarningPolicy,
)
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.options.sources import RowSource, UpstreamRows
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import ParquetIOManager
from forvalue_dagster.storage.tensors import TensorIOManager


def valuation_definitions(
    *,
    training_rows: RowSource | UpstreamRows,
    validation_rows: RowSource,
    storage: Storage,
    valuation: Valuation | None = None,
    selection: SelectionPolicy | None = None,
    gate: GatePolicy | None = None,
    warnings: WarningPolicy | None = None,
    suites: Sequence[Suite] = (),
    scoring: Literal["features", "exact"] = "features",
    refine: Refine | None = None,
    attribution: Attribution | None = None,
    warm_up: WarmUp | None = None,
    upstream_shards: dg.PartitionsDefinition[str] | None = None,
    automation: Automation | None = None,
    compute: Compute | None = None,
    alerts: Alerts | None = None,
    key_prefix: Sequence[str] = (),
    group_name: str = "forvalue",
    translation: Translation | None = None,
) -> dg.Definitions:
    """Build assets, checks, jobs, sensors and resources that value and filter finetuning data.

    Args:
        training_rows: the folder or prefix whose files are the shards, or the asset with the rows.
        validation_rows: the trusted rows.
        storage: location of tables and tensors.
        valuation: the model and the valuation options.
        selection: the selection policy.
        gate: the gate policy: what blocks a shard.
        warnings: thresholds of the checks that warn.
        suites: further suites of Great Expectations for raw and validation rows, in addition to
            the default one: JSON files, or objects.
        scoring: "features" values each row from its stored features, without the model; "exact"
            passes the rows through the model for every validation set.
        refine: options to compute values near the selection's boundary exactly; needs "features".
        attribution: options of additional assets that name, for each validation row, the training
            rows that help and hurt it most, and the reverse.
        warm_up: options to train a LoRA adapter on the rows before they are valued.
        upstream_shards: partitions of the asset with the training rows, if it has any.
        automation: options for looking for changes: when, and how many shards at a time.
        compute: pools, tags and workers of the steps that load the model.
        alerts: receivers of alerts about blocked shards, warnings, stale datasets and overrides.
        key_prefix: prefix of every asset key.
        group_name: the group in the UI.
        translation: function of (spec, the asset's own name) that returns the spec with the key
            and attributes to use.

    Returns:
        Definitions with the jobs `forvalue_profile` (validation rows, after a warm-up the
        model), `forvalue_shard` (one shard, to its scores and checks), `forvalue_filter` (the
        dataset), `forvalue_retention` (unused files) and `forvalue_estimate` (a dry run).

    Raises:
        ValueError: if the options contradict each other.
    """
    gate, selection = gate or GatePolicy(), selection or SelectionPolicy()
    valuation = valuation or Valuation()
    from_files = isinstance(training_rows, RowSource)
    if upstream_shards is not None and from_files:
        raise ValueError("upstream_shards is set, but training_rows are files; see UpstreamRows.")
    if not from_files and warm_up is not None and warm_up.rows == "training":
        raise ValueError("A warm-up on training rows needs files; set its rows to 'validation'.")
    if isinstance(training_rows, UpstreamRows) and upstream_shards is None:
        upstream_shards = dg.StaticPartitionsDefinition([training_rows.key.path[-1]])
    naming = Naming(tuple(key_prefix), group_name, upstream_shards, translation)
    plan = Plan(
        scoring,
        refine,
        attribution,
        warm_up,
        bool(valuation.local_folders()),
        automation or Automation(),
        compute or Compute(),
    )
    with catch_warnings():
        # Partitions on checks are in preview in Dagster; without them a gate on shards leaks.
        simplefilter("ignore", dg.PreviewWarning)
        # So are policies of backfills.
        simplefilter("ignore", dg.BetaWarning)
        made = [
            *build_row_assets(naming, plan, training_rows, validation_rows, suites),
            *([build_model_asset(naming, plan)] if warm_up else []),
            build_profile_asset(naming, plan, valuation),
            *([build_feature_asset(naming, plan, valuation)] if plan.keeps_features else []),
            build_score_asset(naming, plan, valuation, gate),
            *(build_attribution_assets(naming, plan, attribution) if attribution else []),
            build_filtered_dataset(naming, plan, selection, gate, storage),
        ]
        checks = [
            *build_row_checks(naming, suites),
            build_profile_check(naming),
            build_score_checks(naming),
        ]
        if scoring == "features":
            checks.append(build_fidelity_check(naming, plan))
        retention = build_retention_job(naming)
        target = dg.AssetSelection.assets(*(key for asset in made for key in asset.keys))
        sensors = [
            build_automation_sensor(naming.name("automation"), target, plan.automation),
            *build_source_sensors(naming, plan, training_rows, valuation, retention),
            *([build_alert_sensor(naming, alerts, [*made, *checks])] if alerts else []),
        ]
    schedule = plan.automation.schedule
    definitions = dg.Definitions(
        assets=[*build_source_assets(naming, plan, training_rows), *made],
        asset_checks=checks,
        jobs=[
            *_jobs(naming, plan),
            retention,
            *([build_estimate_job(naming, plan)] if from_files else []),
        ],
        sensors=sensors,
        schedules=[build_discovery_schedule(naming, retention, plan.automation, schedule)]
        if schedule
        else [],
        resources={
            naming.resource(name): resource
            for name, resource in {
                "training_rows": training_rows,
                "validation_rows": validation_rows,
                "valuation": valuation,
                "selection": selection,
                "gate": gate,
                "warnings": warnings or WarningPolicy(),
                "storage": storage,
                "parquet_io_manager": ParquetIOManager(storage=storage),
                "tensor_io_manager": TensorIOManager(storage=storage),
            }.items()
        },
    )
    return naming.translated(definitions, ASSETS)


def _jobs(naming: Naming, plan: Plan) -> list[dg.UnresolvedAssetJobDefinition]:
    def job(name: str, description: str, *assets: str) -> dg.UnresolvedAssetJobDefinition:
        selection = dg.AssetSelection.assets(*(naming.key(asset) for asset in assets))
        return dg.define_asset_job(naming.name(name), selection, description=description)

    valued = ["value_scores"]
    if plan.keeps_features:
        valued.append("sample_features")
    if plan.attribution:
        valued.append("training_attribution")
    return [
        job(
            "profile",
            "Read the validation rows and make their profile.",
            *(["valuation_model"] if plan.warm_up else []),
            "validation_data",
            "validation_profile",
        ),
        job(
            "shard",
            "Read one shard, compute its features and value scores, check them.",
            "raw_finetuning_data",
            *valued,
        ),
        job(
            "filter",
            "Build the filtered dataset from the shards that passed.",
            "filtered_dataset",
            "dropped_rows",
            *(["validation_attribution"] if plan.attribution else []),
        ),
    ]
