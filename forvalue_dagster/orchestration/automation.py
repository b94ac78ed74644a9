"""Declarative automation: when the filtered dataset is built again, and what holds it back.

In fail mode every blocking check of every shard must have passed. In exclude mode a bad shard is
left out and must not hold the others back: so each check must only have been *executed* for what
is in force, and a shard that a failed check upstream kept from being valued is not waited for.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

AC = dg.AutomationCondition


def fan_in(on_blocked_shard: str) -> dg.AutomationCondition[Any]:
    """Return the condition of an asset that gathers all shards.

    Args:
        on_blocked_shard: "fail" or "exclude".
    """
    # since_last_handled would also count the first evaluation as handled (a dataset that is missing
    # when automation is switched on must be built), and a build of the dataset itself (a shard that
    # changed after it, but before the next tick, must not be forgotten).
    rebuilt = (AC.newly_missing() | AC.any_deps_updated()).since(AC.newly_requested())
    settled = ~AC.any_deps_in_progress() & ~AC.in_progress()
    there, decided = ~AC.missing(), AC.check_passed()
    waited_for = AC.missing()
    if on_blocked_shard == "exclude":
        decided = decided | AC.check_failed()
        # Scores lie behind their features, which lie behind the rows (or right behind the rows).
        above = AC.any_deps_match(AC.any_checks_match(AC.check_failed(), blocking_only=True))
        kept_from_scores = above | AC.any_deps_match(above)
        there, waited_for = there & ~kept_from_scores, waited_for & ~kept_from_scores
    coming = AC.will_be_requested()
    undecided = AC.any_deps_match(
        there & AC.any_checks_match(~decided & ~coming, blocking_only=True)
    )
    waiting = AC.any_deps_match(waited_for & ~coming)
    return (rebuilt & settled & ~waiting & ~undecided).with_label(
        f"shards_settled_{on_blocked_shard}"
    )


def build_automation_sensor(
    name: str, target: dg.AssetSelection
) -> dg.AutomationConditionSensorDefinition:
    """Build the sensor that evaluates the conditions; it runs by default."""
    return dg.AutomationConditionSensorDefinition(
        name,
        target=target,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Builds the filtered dataset when its shards are settled.",
    )
