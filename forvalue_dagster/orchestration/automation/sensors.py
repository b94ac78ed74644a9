"""Sensors that watch files outside Dagster: shards, validation rows, a local model."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import dagster as dg

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.orchestration.automation.retention import purge_request
from forvalue_dagster.orchestration.naming import (
    MODEL_FILES,
    TRAINING_FILES,
    TRAINING_SHARDS,
    VALIDATION_FILES,
    Naming,
)
from forvalue_dagster.orchestration.options.plan import Automation, Plan
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.options.sources import RowForm, RowSource
from forvalue_dagster.quality.standing import DATA_VERSION, latest_materialization
from forvalue_dagster.storage.source_files import LocalFiles, state_of

# Metadata key of a report: the source that the shard belongs to.
_OWNER = "source"
# A missing mount, or a mistyped prefix, looks like this.
_EMPTY = (
    "{path} is empty, and {count} shards are registered. Nothing is removed: if they are meant to "
    "go, delete the partitions in the UI."
)
_STRANGE = (
    "{count} registered shards are none of this source's: another project registers its own under "
    "{name}, too, or someone did by hand. They are left alone; give one of the projects a "
    "key_prefix."
)


@dataclass(frozen=True)
class Discovery:
    """The changes among the shards of a source.

    Attributes:
        present: shard → state, for known and new shards, without those left for the next look.
        changed: new shards, and shards whose state has changed.
        gone: shards whose file no longer exists.
        returned: shards that someone unregistered although their file exists.
        registers: whether the set of shards changes.
    """

    present: dict[str, str]
    changed: list[str]
    gone: list[str]
    returned: list[str]
    registers: bool

    @classmethod
    def of(
        cls,
        known: Mapping[str, str],
        now: Mapping[str, str],
        limit: int,
        off_the_list: Collection[str] = (),
    ) -> Discovery:
        """Compare two states of a source.

        Args:
            known: shard → state when it was last seen.
            now: shard → state now.
            limit: largest number of changes to handle.
            off_the_list: known shards that are not registered.
        """
        changed = sorted(shard for shard in now if now[shard] != known.get(shard))[:limit]
        gone = sorted(known.keys() - now.keys())
        present = {shard: state for shard, state in known.items() if shard not in gone}
        present |= {shard: now[shard] for shard in changed}
        returned = sorted((present.keys() & set(off_the_list)) - set(changed))
        return cls(present, changed, gone, returned, present.keys() != known.keys())

    @property
    def is_something(self) -> bool:
        """Whether there is any change."""
        return bool(self.changed or self.gone or self.returned)

    def events(self, naming: Naming, owner: str) -> list[dg.AssetMaterialization]:
        """Return the reports that trigger automation."""
        files = naming.key(TRAINING_FILES)
        events = [_event(files, self.present[shard], shard, owner) for shard in self.changed]
        # If it comes back in the same state, that is a change.
        events += [_event(files, "gone", shard, owner) for shard in self.gone]
        if self.registers or self.returned:
            # A shard that has come back may be missing from the dataset.
            since = [datetime.now(UTC).isoformat()] if self.returned else []
            names = sha256("\n".join([*sorted(self.present), *since]).encode()).hexdigest()[:32]
            events.append(_event(naming.key(TRAINING_SHARDS), names))
        return events


def owner_of(training_rows: RowSource) -> str:
    """Return the mark in the reports of a source's shards.

    Dynamic partitions belong to the instance: another project with the same names may register its
    own shards among ours, and we must not remove those.
    """
    return sha256(training_rows.path.encode()).hexdigest()[:16]


def registered_by(
    instance: dg.DagsterInstance, naming: Naming, owner: str, now: Collection[str]
) -> dict[str, str]:
    """Return shard → reported state, for the registered shards of this source.

    Args:
        instance: the Dagster instance.
        naming: the graph's names.
        owner: the source's mark.
        now: the shards that the source holds.
    """
    own, unmarked = {}, {}
    for shard in naming.registered(instance):
        last = latest_materialization(instance, naming.key(TRAINING_FILES), shard)
        mark = last.metadata.get(_OWNER) if last else None
        if mark is None:
            unmarked[shard] = last.data_version if last else ""
        elif mark.value == owner:
            own[shard] = last.data_version if last else ""
    # Registered by hand, or before marks existed: all are ours if any of them is.
    return own | (unmarked if own or unmarked.keys() & set(now) else {})


def off_the_list(instance: dg.DagsterInstance, naming: Naming, known: Collection[str]) -> list[str]:
    """Return the known shards that are no longer registered."""
    registered = set(naming.registered(instance))
    files = naming.key(TRAINING_FILES)
    return [
        shard
        for shard in known
        if shard not in registered
        and (registered or latest_materialization(instance, files, shard) is not None)
    ]


def build_source_sensors(
    naming: Naming,
    plan: Plan,
    training_rows: object,
    valuation: Valuation,
    purge: dg.JobDefinition,
) -> list[dg.SensorDefinition]:
    """Build the sensors that watch rows (unless a schedule does) and a local model."""
    automation = plan.automation
    sensors = []
    if automation.schedule is None:
        sensors.append(build_validation_sensor(naming, automation))
        if isinstance(training_rows, RowSource):
            sensors.append(build_shard_sensor(naming, purge, automation))
    if plan.watches_model:
        sensors.append(build_model_sensor(naming, valuation, automation))
    return sensors


def build_shard_sensor(
    naming: Naming, purge: dg.JobDefinition, automation: Automation
) -> dg.SensorDefinition:
    """Build the sensor that watches the training rows.

    It registers shards, and reports the state of their files, which triggers automation; the only
    run that it starts itself removes files of removed shards. The cursor is JSON: shard → state.
    It is written last, and everything else may happen twice, so a tick that dies is repeated.

    Args:
        naming: the graph's names.
        purge: job that removes the files of removed shards.
        automation: options of the sensor: its interval, and the number of shards at a time.
    """

    @dg.sensor(
        name=naming.name("new_shards"),
        job=purge,
        minimum_interval_seconds=automation.seconds,
        default_status=automation.status,
        description="Registers new shards, reports changed ones, removes deleted ones.",
    )
    @naming.own
    def new_shards(
        context: dg.SensorEvaluationContext, training_rows: RowSource
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            seen = training_rows.survey()
        except DataFileError as error:
            # A folder that is missing for a while must not look like removed shards.
            return dg.SkipReason(str(error))
        if seen.passed_over:
            context.log.warning(str(seen))
        now = {shard: file.state for shard, file in seen.shards.items()}
        instance, owner = context.instance, owner_of(training_rows)
        known: dict[str, str] = json.loads(context.cursor or "{}")
        missing = off_the_list(instance, naming, known)
        if context.cursor is None:
            # A lost cursor must not hide shards that were removed since.
            known = dict.fromkeys(registered_by(instance, naming, owner, now), "")
        if known and not now:
            return dg.SkipReason(_EMPTY.format(count=len(known), path=training_rows.path))
        if strange := set(naming.registered(instance)) - known.keys() - now.keys():
            context.log.warning(_STRANGE.format(count=len(strange), name=naming.name("shards")))
        found = Discovery.of(known, now, automation.shards_per_tick, missing)
        if not found.is_something:
            return dg.SkipReason(f"{len(known)} shards, none new, changed or gone. {seen}".strip())
        shards = dg.DynamicPartitionsDefinition(name=naming.name("shards"))
        requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if found.changed or found.returned:
            requests.append(shards.build_add_request([*found.changed, *found.returned]))
        if found.gone:
            requests.append(shards.build_delete_request(found.gone))
        return dg.SensorResult(
            run_requests=[purge_request(naming)] if found.gone else [],
            asset_events=found.events(naming, owner),
            dynamic_partitions_requests=requests,
            cursor=json.dumps(found.present, sort_keys=True),
        )

    return new_shards


def build_discovery_schedule(
    naming: Naming, purge: dg.JobDefinition, automation: Automation, cron: str
) -> dg.ScheduleDefinition:
    """Build a schedule that replaces the sensors: it looks for changes at set hours.

    The known state is read from the event log, which has the reports of its last tick.
    """

    @dg.schedule(
        cron_schedule=cron,
        job=purge,
        name=naming.name("discovery"),
        default_status=automation.schedule_status,
        description="Registers new shards, reports changed ones and changed validation rows.",
    )
    @naming.own
    def discovery(
        context: dg.ScheduleEvaluationContext, training_rows: RowForm, validation_rows: RowSource
    ) -> dg.RunRequest | dg.SkipReason:
        instance = context.instance
        key, state = naming.key(VALIDATION_FILES), validation_rows.state()
        last = latest_materialization(instance, key)
        if last is None or last.data_version != state:
            instance.report_runless_asset_event(_event(key, state))
        if not isinstance(training_rows, RowSource):
            return dg.SkipReason("The rows come from another asset.")
        seen = training_rows.survey()
        if seen.passed_over:
            context.log.warning(str(seen))
        now = {shard: file.state for shard, file in seen.shards.items()}
        owner = owner_of(training_rows)
        known = registered_by(instance, naming, owner, now)
        if known and not now:
            return dg.SkipReason(_EMPTY.format(count=len(known), path=training_rows.path))
        found = Discovery.of(known, now, len(now))
        shards = naming.name("shards")
        # In this order a tick that dies is repeated by the next.
        if found.changed:
            instance.add_dynamic_partitions(shards, found.changed)
        for event in found.events(naming, owner):
            instance.report_runless_asset_event(event)
        for shard in found.gone:
            instance.delete_dynamic_partition(shards, shard)
        if found.gone:
            return purge_request(naming)
        done = f"{len(found.changed)} shards new or changed, none gone. {seen}"
        return dg.SkipReason(done.strip())

    return discovery


def build_validation_sensor(naming: Naming, automation: Automation) -> dg.SensorDefinition:
    """Build the sensor that watches the validation rows; the cursor is their state."""

    @dg.sensor(
        name=naming.name("validation_changes"),
        minimum_interval_seconds=automation.seconds,
        default_status=automation.status,
        description="Reports changes of the validation rows.",
    )
    @naming.own
    def validation_changes(
        context: dg.SensorEvaluationContext, validation_rows: RowSource
    ) -> dg.SensorResult | dg.SkipReason:
        return _report(context, naming.key(VALIDATION_FILES), validation_rows.state)

    return validation_changes


def build_model_sensor(
    naming: Naming, valuation: Valuation, automation: Automation
) -> dg.SensorDefinition:
    """Build the sensor that watches the folders of a local model; the cursor is their state."""

    def state() -> str:
        folders = [LocalFiles(folder).states() for folder in valuation.local_folders()]
        return state_of(
            {f"{index}/{path}": s for index, f in enumerate(folders) for path, s in f.items()}
        )

    @dg.sensor(
        name=naming.name("model_changes"),
        minimum_interval_seconds=automation.seconds,
        default_status=automation.status,
        description="Reports changes of the model's files.",
    )
    def model_changes(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return _report(context, naming.key(MODEL_FILES), state)

    return model_changes


def _report(
    context: dg.SensorEvaluationContext, key: dg.AssetKey, state: Callable[[], str]
) -> dg.SensorResult | dg.SkipReason:
    try:
        now = state()
    except DataFileError as error:
        return dg.SkipReason(str(error))
    if now == context.cursor:
        return dg.SkipReason("Nothing changed.")
    return dg.SensorResult(asset_events=[_event(key, now)], cursor=now)


def _event(
    key: dg.AssetKey, state: str, shard: str | None = None, owner: str | None = None
) -> dg.AssetMaterialization:
    metadata = {} if owner is None else {_OWNER: owner}
    return dg.AssetMaterialization(
        key, partition=shard, metadata=metadata, tags={DATA_VERSION: state}
    )
