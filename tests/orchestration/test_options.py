"""What the options of the graph leave out, switch off, and pass on: told from the definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import forvalue_dagster as fv


def built(tmp_path: Path, **options: Any) -> dg.Definitions:
    return fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(tmp_path / "train")),
        validation_rows=fv.RowSource(path=str(tmp_path / "validation.jsonl")),
        storage=fv.Storage(base_dir=str(tmp_path / "files")),
        **options,
    )


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"scoring": "exact"}, False),
        ({"scoring": "exact", "attribution": fv.Attribution()}, True),
    ],
)
def test_features_are_kept_only_where_something_reads_them(
    options: dict[str, Any], kept: bool, tmp_path: Path
) -> None:
    definitions = built(tmp_path, **options)
    made = {spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs()}
    assert ("sample_features" in made) == kept
    dg.Definitions.validate_loadable(definitions)


@pytest.mark.parametrize("running", [True, False])
def test_all_that_looks_for_changes_can_be_switched_off(running: bool, tmp_path: Path) -> None:
    automation = fv.Automation(running=running, schedule="0 3 * * *")
    definitions = built(tmp_path, automation=automation)
    status = "RUNNING" if running else "STOPPED"
    instigators = [*(definitions.sensors or []), *(definitions.schedules or [])]
    assert {one.default_status.value for one in instigators} == {status}  # type: ignore[union-attr]


def test_every_step_with_the_model_is_tried_again(tmp_path: Path) -> None:
    retry = dg.RetryPolicy(max_retries=2)
    definitions = built(
        tmp_path,
        compute=fv.Compute(retry_policy=retry),
        refine=fv.Refine(),
        attribution=fv.Attribution(exact=True),
        warm_up=fv.WarmUp(),
    )
    tried = {
        node.name
        for asset in definitions.resolve_asset_graph().asset_nodes
        if (node := asset.assets_def.op if asset.is_executable else None) is not None
        and node.retry_policy == retry
    }
    checks = {
        check.op.name
        for check in definitions.asset_checks or []
        if check.op.retry_policy == retry  # type: ignore[union-attr]
    }
    assert tried == {
        *("valuation_model", "validation_profile", "sample_features"),
        *("forvalue_select_rows", "validation_attribution"),
    }
    assert checks == {"value_scores_feature_fidelity"}
