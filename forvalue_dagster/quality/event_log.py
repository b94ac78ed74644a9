"""Queries of the event log: many partitions at once, new events, and the asset graph.

They use API of Dagster that is not public; only this module and `standing.py` do so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from forvalue_dagster.quality.standing import (
    DATA_VERSION,
    FORCED_BECAUSE,
    Outcome,
    executions,
    outcome_of,
)


def latest_storage_ids(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Collection[str]
) -> Mapping[str, int]:
    """Return partition → event log id of its latest materialisation."""
    if not partitions:
        return {}
    return instance.event_log_storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(partitions)
    )


def latest_versions(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Collection[str]
) -> dict[str, str]:
    """Return partition → data version of its latest materialisation."""
    if not partitions:
        return {}
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        key,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        [DATA_VERSION],
        asset_partitions=list(partitions),
    )
    return {partition: own[DATA_VERSION] for partition, own in tags.items()}


def asset_graph(context: Any) -> Any:
    """Return the assets that a step can see: those of its repository, or else of its job.

    Args:
        context: context of an asset, op or check.
    """
    op: dg.OpExecutionContext = getattr(context, "op_execution_context", context)
    repository = op.get_step_execution_context().job.get_repository_definition()
    return op.job_def.asset_layer.asset_graph if repository is None else repository.asset_graph


@dataclass(frozen=True)
class CheckExecution:
    """One execution of a check.

    Attributes:
        id: id in the history of the check.
        partition: the checked partition; None for a check without partitions.
        outcome: the outcome.
        description: the result's description.
    """

    id: int
    partition: str | None
    outcome: Outcome
    description: str


def check_history(
    instance: dg.DagsterInstance, key: dg.AssetCheckKey, after: int
) -> Iterator[CheckExecution]:
    """Yield the finished executions of a check, in order, up to the first unfinished one.

    Args:
        instance: the Dagster instance.
        key: key of the check.
        after: id of the last known one.
    """
    new = []
    for record in executions(instance, key, None):
        if record.id <= after:
            break
        new.append(record)
    for record in reversed(new):
        if record.evaluation is None:
            run = instance.get_run_by_id(record.run_id)
            if run is not None and not run.is_finished:
                return
            continue
        evaluation = record.evaluation
        yield CheckExecution(
            record.id, evaluation.partition, outcome_of(evaluation), evaluation.description or ""
        )


def overrides_of(
    instance: dg.DagsterInstance, key: dg.AssetKey, after: int
) -> Iterator[tuple[int, str]]:
    """Yield event log id and reason of each override of a dataset's gate.

    Args:
        instance: the Dagster instance.
        key: key of the dataset.
        after: event log id of the last known one.
    """
    records = instance.fetch_observations(
        dg.AssetRecordsFilter(asset_key=key, after_storage_id=after), limit=100, ascending=True
    ).records
    for record in records:
        observed = record.asset_observation
        reason = observed.metadata.get(FORCED_BECAUSE) if observed else None
        if reason is not None:
            yield record.storage_id, str(reason.value)
