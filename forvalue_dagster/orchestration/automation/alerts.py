"""A sensor that sends alerts about blocked shards, warnings, stale datasets and overrides."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.request import Request, urlopen

import dagster as dg

from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.options.alerts import Alert, Alerts, Kind
from forvalue_dagster.quality.event_log import check_history, overrides_of
from forvalue_dagster.quality.lineage import changed_above
from forvalue_dagster.quality.manifest import MANIFEST, Manifest
from forvalue_dagster.quality.standing import (
    latest_materialization,
)

_TIMEOUT = 10


@dataclass
class _Memory:
    """What was seen and reported so far; the sensor's cursor.

    Attributes:
        checks: check → id of its last execution that was seen.
        told: subject → its last alert; the same alert is sent again only if all was well between.
        override: event log id of the last override that was seen.
        stale_since: time when the dataset was first seen stale.
    """

    checks: dict[str, int] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    override: int = 0
    stale_since: float | None = None

    @classmethod
    def of(cls, cursor: str | None) -> _Memory:
        return cls(**json.loads(cursor)) if cursor else cls()


def build_alert_sensor(
    naming: Naming, alerts: Alerts, checked: Sequence[dg.AssetsDefinition]
) -> dg.SensorDefinition:
    """Build the sensor.

    An alert that could not be sent is sent at the next look: the cursor moves only past alerts
    that were sent.

    Args:
        naming: the graph's names.
        alerts: the receivers.
        checked: assets and checks of the graph.
    """
    keys = sorted({key for asset in checked for key in asset.check_keys})

    @dg.sensor(
        name=naming.name("alerts"),
        minimum_interval_seconds=alerts.seconds,
        default_status=dg.DefaultSensorStatus.RUNNING
        if alerts.running
        else dg.DefaultSensorStatus.STOPPED,
        description="Sends one alert for each blocked shard, warning, stale dataset and override.",
    )
    def tell(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        memory = _Memory.of(context.cursor)
        why = None
        for alert in look(context.instance, naming, keys, memory, alerts.stale_minutes):
            if memory.told.get(alert.subject) == alert.text:
                continue
            try:
                send(alert, alerts)
            except Exception as error:
                # Not the error's text, which may hold the address: that is a secret.
                why = f"Nobody could be told of {alert.subject}: {type(error).__name__}."
                context.log.error(why)
                break
            memory.told[alert.subject] = alert.text
        return dg.SensorResult(cursor=json.dumps(vars(memory)), skip_reason=why)

    return tell


def look(
    instance: dg.DagsterInstance,
    naming: Naming,
    checks: Sequence[dg.AssetCheckKey],
    memory: _Memory,
    stale_minutes: float,
) -> Iterator[Alert]:
    """Yield new alerts; the memory is updated as they are taken.

    Args:
        instance: the Dagster instance.
        naming: the graph's names.
        checks: the graph's checks.
        memory: memory of the last look; it is updated.
        stale_minutes: minutes that a dataset may be stale before an alert is sent.
    """
    for key in checks:
        yield from _checks(instance, key, memory)
    dataset = naming.key("filtered_dataset")
    name = dataset.to_user_string()
    made = latest_materialization(instance, dataset)
    if made is None:
        return
    for place, reason in overrides_of(instance, dataset, memory.override):
        text = f"The gate of {name} was overridden: {reason}"
        yield Alert("override", f"gate of {name} ({place})", text)
        memory.override = place
    stored = made.metadata.get(MANIFEST)
    if not isinstance(stored, dg.JsonMetadataValue):
        return
    try:
        manifest = Manifest.from_json(stored.data)  # type: ignore[arg-type]
    except (KeyError, TypeError):
        return
    if manifest.overridden:
        yield Alert(
            "override",
            f"policy of {name} ({made.storage_id})",
            f"{name} was made with another policy: {'; '.join(manifest.overridden)}",
        )
    stale = manifest.outdated(instance) + list(changed_above(instance, manifest.made_from))
    if not stale:
        memory.stale_since = None
        memory.told.pop(f"state of {name}", None)
        return
    memory.stale_since = memory.stale_since or time.time()
    if time.time() - memory.stale_since >= 60 * stale_minutes:
        more = f" (and {len(stale) - 3} more)" if len(stale) > 3 else ""
        yield Alert("stale", f"state of {name}", f"{name} is stale: {'; '.join(stale[:3])}{more}")


def _checks(
    instance: dg.DagsterInstance, key: dg.AssetCheckKey, memory: _Memory
) -> Iterator[Alert]:
    name = f"{key.asset_key.to_user_string()}.{key.name}"
    history = list(check_history(instance, key, after=memory.checks.get(name, 0)))
    for evaluated in {execution.partition: execution for execution in history}.values():
        partition = evaluated.partition
        subject = name if partition is None else f"{name} of {partition!r}"
        if evaluated.outcome == "passed":
            memory.told.pop(subject, None)
        else:
            kind: Kind = "blocked" if evaluated.outcome == "failed" else "warning"
            yield Alert(kind, subject, f"{subject}: {evaluated.description}")
    if history:
        memory.checks[name] = history[-1].id


def send(alert: Alert, alerts: Alerts) -> None:
    """Send one alert.

    Args:
        alert: the alert.
        alerts: the receivers.
    """
    if alerts.notify is not None:
        alerts.notify(alert)
    if alerts.webhook is None:
        return
    webhook = alerts.webhook
    url = webhook.get_value() if isinstance(webhook, dg.EnvVar) else webhook
    body: dict[str, Any] = {"text": alert.text, "kind": alert.kind, "subject": alert.subject}
    request = Request(
        str(url), json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    if request.type not in ("http", "https"):
        raise ValueError("The webhook is no address of the web; expected http:// or https://.")
    with urlopen(request, timeout=_TIMEOUT) as answer:
        answer.read()
