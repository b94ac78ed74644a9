"""Declarative automation: what is made again when, and what holds it back.

Content decides. An asset is made again when the data version of something it is made from has
changed, which is a hash of content all through the graph, or when its own code version has: its
code's or its settings'. Shards go through the graph a step each tick, because only a finished
step knows whether its content is another one.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from forvalue_dagster.orchestration.options.plan import Automation

AC = dg.AutomationCondition
Condition = dg.AutomationCondition[Any]


def _new_content_above() -> Condition:
    # What was made by the run that made the asset itself has been seen already, unless it failed.
    seen = AC.executed_with_root_target()
    changed = AC.data_version_changed()
    return AC.any_deps_match(changed & ~seen) | (AC.any_deps_match(changed) & AC.execution_failed())


def _asked_for() -> Condition:
    # since_last_handled would also count the first evaluation as handled (what is missing when
    # automation is switched on must be made), and the asset's own run (what changed after it
    # began, but before the next tick, must not be forgotten).
    return _since_requested(AC.newly_missing() | _new_content_above() | AC.code_version_changed())


def _since_requested(trigger: Condition) -> Condition:
    # What changes between the tick that asked and the next must not be forgotten with it.
    return trigger.since(AC.newly_requested() & ~trigger)


def when_configured_anew() -> Condition:
    """Return the condition of a model that is pinned: made once for each configuration."""
    trigger = AC.newly_missing() | AC.code_version_changed()
    return (_since_requested(trigger) & ~AC.in_progress()).with_label("configured_anew")


def on_new_content() -> Condition:
    """Return the condition of an asset that is read from outside."""
    return (_asked_for() & ~AC.in_progress()).with_label("new_content")


def behind_checks(ignoring: dg.AssetSelection) -> Condition:
    """Return the condition of an asset that is made from others, when these are settled.

    Args:
        ignoring: what it is made from but need not wait for: files that a sensor may never have
            reported.
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
    """Return the condition of an asset that gathers all shards.

    In fail mode every blocking check of every shard must have passed. In exclude mode a bad shard
    is left out and must not hold the others back: so each check must only have been *executed*
    for what is in force, and a shard that a check or a failed run keeps from being valued is not
    waited for.

    Args:
        on_blocked_shard: "fail" or "exclude".
        ignoring: what it need not wait for: files that a sensor may never have reported.
        shared: what every shard is valued against: its troubles are no shard's own.
    """
    there: Condition = ~AC.missing()
    decided: Condition = AC.check_passed()
    waited_for: Condition = AC.missing()
    # Rows, features or scores that are older than what they are made from: not settled yet.
    outdated = _new_content_above().since(AC.newly_updated())
    behind: Condition = outdated | AC.any_deps_match(outdated) | AC.any_deps_in_progress()
    if on_blocked_shard == "exclude":
        decided = decided | AC.check_failed()
        # Scores lie behind their features, which lie behind the rows (or right behind the rows).
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
        description="Makes again what rests on changed rows, validation rows, model or settings, "
        "shard by shard, and the filtered dataset when its shards are settled.",
    )
