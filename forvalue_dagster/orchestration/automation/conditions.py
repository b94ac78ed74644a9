"""Declarative automation: when assets are rebuilt, and what they wait for.

An asset is rebuilt when a parent's data version has changed, which is a hash of content all
through the graph, or when its own code version has changed: its code or its settings. Shards go
through the graph one step each tick, because only a finished step knows whether its content has
changed.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from forvalue_dagster.orchestration.options.plan import Automation

AC = dg.AutomationCondition
Condition = dg.AutomationCondition[Any]


def _new_content_above() -> Condition:
    # Parents made by the asset's own run have been used already, unless it failed.
    seen = AC.executed_with_root_target()
    changed = AC.data_version_changed()
    return AC.any_deps_match(changed & ~seen) | (AC.any_deps_match(changed) & AC.execution_failed())


def _asked_for() -> Condition:
    # since_last_handled would also count the first evaluation as handled (but assets missing when
    # automation is switched on must be made), and the asset's own run (but changes after its
    # start and before the next tick must not be missed).
    return _since_requested(AC.newly_missing() | _new_content_above() | AC.code_version_changed())


def _since_requested(trigger: Condition) -> Condition:
    # Changes between the tick that requested a run and the next one must not be missed.
    return trigger.since(AC.newly_requested() & ~trigger)


def when_configured_anew() -> Condition:
    """Return the condition of a pinned model: it is made once for each configuration."""
    trigger = AC.newly_missing() | AC.code_version_changed()
    return (_since_requested(trigger) & ~AC.in_progress()).with_label("configured_anew")


def on_new_content() -> Condition:
    """Return the condition of an asset that is read from outside."""
    return (_asked_for() & ~AC.in_progress()).with_label("new_content")


def behind_checks(ignoring: dg.AssetSelection) -> Condition:
    """Return the condition of an asset that waits for its parents and their blocking checks.

    Args:
        ignoring: parents it does not wait for: files that a sensor may never have reported.
    """
    settled = (
        ~AC.any_deps_match(AC.missing()).ignore(ignoring)
        & ~AC.any_deps_in_progress()
        & ~AC.any_deps_match(AC.will_be_requested())
        & ~AC.in_progress()
    )
    return (_asked_for() & settled & AC.all_deps_blocking_checks_passed()).with_label(
        "new_content_behind_checks"
    )


def fan_in(
    on_blocked_shard: str, ignoring: dg.AssetSelection, shared: dg.AssetSelection
) -> Condition:
    """Return the condition of an asset that reads all shards.

    In fail mode every blocking check of every shard must have passed. In exclude mode a bad shard
    is left out and must not delay the others: each check must only have been *executed* for the
    latest materialisation, and a shard that cannot be valued because of a check or a failed run is
    not waited for.

    Args:
        on_blocked_shard: "fail" or "exclude".
        ignoring: parents it does not wait for: files that a sensor may never have reported.
        shared: parents that all shards share; their problems are not a shard's.
    """
    there: Condition = ~AC.missing()
    decided: Condition = AC.check_passed()
    waited_for: Condition = AC.missing()
    # Rows, features or scores that are older than their parents: not ready yet.
    outdated = _new_content_above().since(AC.newly_updated())
    behind: Condition = outdated | AC.any_deps_match(outdated) | AC.any_deps_in_progress()
    if on_blocked_shard == "exclude":
        decided = decided | AC.check_failed()
        # Scores depend on features, which depend on rows (or scores depend directly on rows).
        failed_check = AC.any_checks_match(AC.check_failed(), blocking_only=True)
        above = AC.any_deps_match(failed_check | AC.execution_failed()).ignore(shared)
        given_up = AC.execution_failed() | above | AC.any_deps_match(above).ignore(shared)
        there, waited_for = there & ~given_up, waited_for & ~given_up
        behind = behind & ~given_up
    undecided = AC.any_deps_match(there & AC.any_checks_match(~decided, blocking_only=True))
    waiting = AC.any_deps_match(waited_for | behind | AC.will_be_requested()).ignore(ignoring)
    settled = ~AC.any_deps_in_progress() & ~AC.in_progress()
    return (_asked_for() & settled & ~waiting & ~undecided).with_label(
        f"shards_settled_{on_blocked_shard}"
    )


def build_automation_sensor(
    name: str, target: dg.AssetSelection, automation: Automation
) -> dg.AutomationConditionSensorDefinition:
    """Build the sensor that evaluates the conditions."""
    return dg.AutomationConditionSensorDefinition(
        name,
        target=target,
        minimum_interval_seconds=automation.seconds,
        default_status=automation.status,
        description="Rebuilds whatever depends on changed rows, validation rows, model or "
        "settings, shard by shard, and the filtered dataset when its shards are ready.",
    )
