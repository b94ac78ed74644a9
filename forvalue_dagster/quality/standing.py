"""An asset's latest materialisation, and the results of its checks for it.

A blocking check protects only its own run. Any other run must ask whether the last execution of
the check passed *for the materialisation about to be read*. Dagster's public API answers that only
in automation conditions. API that is not public is used only here and in `event_log.py`: the
history of a check's executions in the event log, the materialisation that an evaluation names as
its target, and the tags that name what a materialisation was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import dagster as dg

Outcome = Literal["passed", "warned", "failed", "unfinished", "running", "missing", "outdated"]

DATA_VERSION = "dagster/data_version"
# Metadata key: state of the files that rows were read from; a sensor reports the same states.
FILE_STATE = "file_state"
# Metadata key of an observation of a dataset: the reason why its gate was overridden.
FORCED_BECAUSE = "gate_forced_because"

_CODE_VERSION = "dagster/code_version"
_INPUT_VERSION = "dagster/input_data_version/"
_INPUT_POINTER = "dagster/input_event_pointer/"
# Number of a check's executions in one query.
_HISTORY = 25

_SAID: dict[Outcome, str] = {
    "passed": "passed",
    "warned": "failed as a warning",
    "failed": "failed",
    "unfinished": "did not finish: it raised, or its run was stopped",
    "running": "is being executed now; wait for it",
    "missing": "was never executed",
    "outdated": "was executed for an older materialisation only",
}


@dataclass(frozen=True)
class Read:
    """The state of one parent asset that a materialisation was made from.

    Attributes:
        storage_id: the parent's latest id in the event log then; None if there was none, or it is
            not known.
        data_version: the parent's data version.
    """

    storage_id: int | None
    data_version: str

    def is_still(self, now: Materialization) -> bool:
        """Whether the asset's latest state is the one that was read.

        For a source without any report, the first report is not a change.
        """
        if self.storage_id is None and self.data_version == "INITIAL":
            return True
        if self.storage_id is not None and now.storage_id <= self.storage_id:
            return True
        # For several partitions Dagster stores a hash of their versions in order.
        hashed = sha256(now.data_version.encode()).hexdigest()
        return self.data_version in (now.data_version, hashed)


@dataclass(frozen=True)
class Materialization:
    """One materialisation of an asset or of one partition of it.

    Attributes:
        storage_id: its id in the event log; later ones are larger.
        run_id: the run that made it.
        timestamp: time, in seconds since 1970.
        metadata: its metadata.
        tags: its tags; Dagster's own tags name the materialisations it was made from.
    """

    storage_id: int
    run_id: str
    timestamp: float
    metadata: Mapping[str, dg.MetadataValue[Any]]
    tags: Mapping[str, str]

    @classmethod
    def plain(cls, storage_id: int, data_version: str) -> Materialization:
        """Return a materialisation with nothing but its id and data version."""
        return cls(storage_id, "", 0.0, {}, {DATA_VERSION: data_version})

    @property
    def data_version(self) -> str:
        """The data version, which changes with the content."""
        return self.tags.get(DATA_VERSION, str(self.storage_id))

    @property
    def code_version(self) -> str:
        """Version of the code and the settings that made it."""
        return self.tags.get(_CODE_VERSION, "")

    @property
    def inputs(self) -> dict[dg.AssetKey, Read]:
        """The assets it was made from; empty if there are none, or they are not known."""
        found = {}
        state = self.metadata.get(FILE_STATE)
        for tag, pointer in self.tags.items():
            if not tag.startswith(_INPUT_POINTER):
                continue
            name = tag.removeprefix(_INPUT_POINTER)
            version = self.tags.get(_INPUT_VERSION + name, "INITIAL")
            read = Read(None if pointer == "NULL" else int(pointer), version)
            # Files may have been read before, or after, a sensor reported them.
            found[dg.AssetKey.from_user_string(name)] = (
                read if state is None else Read(None, str(state.value))
            )
        return found


@dataclass(frozen=True)
class CheckStanding:
    """The result of a check for the latest materialisation.

    Attributes:
        check: name of the check.
        asset: key of the checked asset.
        partition: the checked partition; None for an asset without partitions.
        outcome: outcome of the last execution.
        description: description of that execution's result.
    """

    check: str
    asset: dg.AssetKey
    partition: str | None
    outcome: Outcome
    description: str

    @property
    def holds(self) -> bool:
        """Whether it passed, or failed only as a warning, for the latest materialisation."""
        return self.outcome in ("passed", "warned")

    @property
    def summary(self) -> str:
        """One clause for a person."""
        where = "" if self.partition is None else f" for {self.partition!r}"
        said = f" ({self.description})" if self.description else ""
        return f"check {self.check!r} of {self.asset.to_user_string()}{where} " + (
            _SAID[self.outcome] + said
        )


def latest_materialization(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    partition: str | None = None,
    run_id: str | None = None,
) -> Materialization | None:
    """Return the latest materialisation of an asset or of one of its partitions, or None.

    Args:
        instance: the Dagster instance.
        key: key of the asset.
        partition: the partition; None for an asset without partitions.
        run_id: the run that must have made it; one made by another run is ignored.
    """
    partitions = None if partition is None else [partition]
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions), limit=1
    ).records
    if run_id is not None:
        records = [record for record in records if record.run_id == run_id]
    if not records:
        return None
    event = records[0].asset_materialization
    assert event is not None  # the filter asks for nothing else
    record = records[0]
    return Materialization(
        record.storage_id, record.run_id, record.timestamp, event.metadata, event.tags or {}
    )


def check_evaluation(
    result: dg.AssetCheckResult, partition: str, materialization: Materialization, *, blocking: bool
) -> dg.AssetCheckEvaluation:
    """Return a check's result as an event of one partition and one materialisation."""
    from dagster._core.definitions.asset_checks import asset_check_evaluation as events

    assert result.asset_key is not None
    assert result.check_name is not None
    return dg.AssetCheckEvaluation(
        asset_key=result.asset_key,
        check_name=result.check_name,
        passed=result.passed,
        metadata={
            name: value
            for name, value in result.metadata.items()
            if not isinstance(value, dg.NullMetadataValue)
        },
        severity=result.severity,
        description=result.description,
        partition=partition,
        blocking=blocking,
        target_materialization_data=events.AssetCheckEvaluationTargetMaterializationData(
            storage_id=materialization.storage_id,
            run_id=materialization.run_id,
            timestamp=materialization.timestamp,
        ),
    )


def provenance(
    context: dg.AssetExecutionContext, key: dg.AssetKey, partition: str
) -> dict[str, str]:
    """Return the tags that Dagster gives a materialisation: code version and parents."""
    tags = {_CODE_VERSION: context.assets_def.code_versions_by_key[key] or ""}
    for parent in context.assets_def.asset_deps[key]:
        made = latest_materialization(context.instance, parent, partition)
        made = made or latest_materialization(context.instance, parent)
        name = parent.to_user_string()
        tags[_INPUT_VERSION + name] = made.data_version if made else "INITIAL"
        tags[_INPUT_POINTER + name] = str(made.storage_id) if made else "NULL"
    return tags | {"dagster/data_version_is_user_provided": "true"}


def check_standing(
    instance: dg.DagsterInstance,
    key: dg.AssetCheckKey,
    materialization: Materialization,
    partition: str | None = None,
) -> CheckStanding:
    """Return the result of a check's last execution for a materialisation.

    Args:
        instance: the Dagster instance.
        key: key of the check.
        materialization: the materialisation about to be read.
        partition: the checked partition; None for a check without partitions.
    """
    from dagster._core.storage.event_log import base

    only = base.PartitionKeyFilter(key=partition)  # type: ignore[attr-defined]
    for record in executions(instance, key, only):
        evaluation = record.evaluation
        if record.status.value == "PLANNED" or evaluation is None:
            run = instance.get_run_by_id(record.run_id)
            if run is not None and not run.is_finished:
                return CheckStanding(key.name, key.asset_key, partition, "running", "")
            if _failed_to_rebuild(instance, record.run_id, key.asset_key, materialization):
                continue  # it was planned for a materialisation that was never made
            return CheckStanding(key.name, key.asset_key, partition, "unfinished", "")
        target = evaluation.target_materialization_data
        # A check without a target belongs to the materialisation of its run.
        ours = (
            target.storage_id == materialization.storage_id
            if target is not None
            else record.run_id == materialization.run_id
        )
        outcome: Outcome = "outdated"
        if ours:
            outcome = outcome_of(evaluation)
        description = (evaluation.description or "").rstrip(".")
        return CheckStanding(key.name, key.asset_key, partition, outcome, description)
    return CheckStanding(key.name, key.asset_key, partition, "missing", "")


def outcome_of(evaluation: dg.AssetCheckEvaluation) -> Outcome:
    """Return the outcome of an evaluation."""
    if evaluation.passed:
        return "passed"
    return "warned" if evaluation.severity == dg.AssetCheckSeverity.WARN else "failed"


def executions(instance: dg.DagsterInstance, key: dg.AssetCheckKey, only: Any) -> Iterator[Any]:
    """Yield executions of a check, the last one first, for one partition or all."""
    cursor = None
    while True:
        page = instance.event_log_storage.get_asset_check_execution_history(
            key, limit=_HISTORY, cursor=cursor, partition_filter=only
        )
        yield from page
        if len(page) < _HISTORY:
            return
        cursor = page[-1].id


def _failed_to_rebuild(
    instance: dg.DagsterInstance, run_id: str, asset: dg.AssetKey, current: Materialization
) -> bool:
    """Whether a finished run was planned to materialise an asset again, and did not."""
    if run_id == current.run_id:
        return False
    planned = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    ).records
    events = [record.event_log_entry.dagster_event for record in planned]
    return any(event is not None and event.asset_key == asset for event in events)
