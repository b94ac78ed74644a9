"""Sensors and automation evaluated as the daemon does, a tick at a time, and what they ask for run.

The evaluations are Dagster's own. What the daemon adds, launching the runs in processes, is here a
call: the soak test (test_soak.py) has the real daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.automation_tick_evaluation_context import (
    build_run_requests,
    build_run_requests_with_backfill_policies,
)
from dagster._core.definitions.partitions.context import partition_loading_context

from tests.orchestration.conftest import Project

SENSORS = ("forvalue_new_shards", "forvalue_validation_changes", "forvalue_model_changes")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
Ran = set[tuple[str, str | None]]


@contextmanager
def partitions_read_once(instance: dg.DagsterInstance) -> Iterator[None]:
    """Read partitions once a tick, as the daemon does; Dagster's tester asks for every node."""
    instance.get_dynamic_partitions = cache(instance.get_dynamic_partitions)
    try:
        yield
    finally:
        del instance.get_dynamic_partitions


@dataclass
class Daemon:
    """Holds the cursors of one project's sensors."""

    project: Project
    cursors: dict[str, str | None] = field(default_factory=dict)
    automation: Any = None
    results: list[dg.ExecuteInProcessResult] = field(default_factory=list)

    def settle(self, ticks: int = 12) -> Ran:
        """Tick until nothing more happens; return which asset of which shard was made."""
        ran: Ran = set()
        for _ in range(ticks):
            self.observe()
            before = len(self.results)
            made = self.tick()
            ran |= made
            if len(self.results) == before:
                return ran
        raise AssertionError(f"still at work after {ticks} ticks: {made}")

    def observe(self) -> None:
        """Evaluate every sensor that looks outside, and apply what it says."""
        instance, definitions = self.project.instance, self.project.definitions
        for name in SENSORS:
            if name not in {sensor.name for sensor in definitions.sensors or []}:
                continue
            with dg.build_sensor_context(
                instance=instance,
                cursor=self.cursors.get(name),
                resources=definitions.resources,
                definitions=definitions,
            ) as context:
                said = definitions.resolve_sensor_def(name)(context)
            if isinstance(said, dg.SkipReason):
                continue
            for request in said.dynamic_partitions_requests or []:
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    instance.add_dynamic_partitions(
                        request.partitions_def_name, request.partition_keys
                    )
                else:
                    for key in request.partition_keys:
                        instance.delete_dynamic_partition(request.partitions_def_name, key)
            for event in said.asset_events:
                instance.report_runless_asset_event(event)
            self.cursors[name] = said.cursor
            for request in said.run_requests or []:
                job = definitions.resolve_job_def("forvalue_retention")
                config = {**request.run_config, **QUIET}
                self.results.append(job.execute_in_process(instance=instance, run_config=config))

    def tick(self) -> Ran:
        """Evaluate the automation conditions once, and run what they ask for."""
        definitions, instance = self.project.definitions, self.project.instance
        with partitions_read_once(instance):
            evaluated = dg.evaluate_automation_conditions(
                definitions, instance, cursor=self.automation
            )
        self.automation = evaluated.cursor
        subsets = [result.true_subset for result in evaluated.results]
        ran: Ran = set()
        for request in self._runs([subset for subset in subsets if not subset.is_empty]):
            ran |= self.run(request)
        return ran

    def _runs(self, subsets: list[Any]) -> Iterator[dg.RunRequest]:
        """Turn a tick's decision into runs: those that it asks for, and those of its backfill."""
        graph = self.project.definitions.resolve_asset_graph()
        with partition_loading_context(dynamic_partitions_store=self.project.instance):
            for request in build_run_requests(subsets, graph, {}, emit_backfills=True):
                if not request.requires_backfill_daemon():
                    yield request
                    continue
                chosen = request.asset_graph_subset
                assert isinstance(chosen, AssetGraphSubset)
                yield from build_run_requests_with_backfill_policies(
                    list(chosen.iterate_asset_partitions()), graph, self.project.instance
                )

    def run(self, request: dg.RunRequest) -> Ran:
        definitions = self.project.definitions
        job = definitions.resolve_implicit_global_asset_job_def().get_subset(
            asset_selection=set(request.asset_selection or ()),
            asset_check_selection=set(request.asset_check_keys)
            if request.asset_check_keys
            else None,
        )
        result = job.execute_in_process(
            instance=self.project.instance,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            run_config=QUIET,
            raise_on_error=False,
        )
        self.results.append(result)
        return {(made.asset_key.to_user_string(), made.partition) for made in self.made(result)}

    def made(self, result: dg.ExecuteInProcessResult) -> list[dg.AssetMaterialization]:
        """Return what a run made; a failed step's own events are in the instance only."""
        records = self.project.instance.get_records_for_run(
            result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
        ).records
        return [record.asset_materialization for record in records if record.asset_materialization]
