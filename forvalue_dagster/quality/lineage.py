"""Check that assets upstream and downstream of a filtered dataset are up to date.

Dagster tags each materialisation with what it was made from, so each asset can be compared with
its parents' latest state. Upstream of the dataset, only a change of content counts. Downstream,
towards the caller, any later materialisation counts, because the content of the user's assets is
not known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from forvalue_dagster.quality.event_log import asset_graph, latest_storage_ids
from forvalue_dagster.quality.manifest import CERTIFIED, MANIFEST, MadeFrom, Source
from forvalue_dagster.quality.standing import (
    Materialization,
    latest_materialization,
)

# Asset → its partitions that are read; None for an asset without partitions.
Wanted = dict[dg.AssetKey, set[str] | None]
_STUB = "dagster/auto_created_stub_asset"


def trace_shard(
    instance: dg.DagsterInstance,
    shard: str,
    tables: Mapping[dg.AssetKey, Sequence[str]],
) -> tuple[dict[str, MadeFrom], Source | None, list[str]]:
    """Return a shard's tables, the source of the first, and what does not fit together.

    Args:
        instance: the Dagster instance.
        shard: the partition.
        tables: asset → its blocking checks, each made from the one before it.
    """
    made = {key: latest_materialization(instance, key, shard) for key in tables}
    found: dict[str, MadeFrom] = {}
    source, problems = None, []
    for key, own in made.items():
        if own is None:
            continue  # the shard's verdict says so
        name = key.to_user_string()
        found[name] = MadeFrom.of(own, tables[key])
        for parent, read in own.inputs.items():
            if parent not in made:
                if key == next(iter(tables)):
                    source = Source(
                        parent.to_user_string(), name, read.storage_id, read.data_version
                    )
                continue
            above = made[parent]
            if above is not None and not read.is_still(above):
                problems.append(
                    f"its {name} was made from another {parent.to_user_string()} than is in force: "
                    f"materialise {name} again"
                )
    return found, source, problems


def changed_above(instance: dg.DagsterInstance, made_from: Mapping[str, MadeFrom]) -> Iterator[str]:
    """Yield what a dataset was made from, apart from its shards, and has changed since.

    Args:
        instance: the Dagster instance.
        made_from: asset → the materialisation that was read.
    """
    waiting: list[tuple[dg.AssetKey, Materialization]] = []
    for name, made in made_from.items():
        key = dg.AssetKey.from_user_string(name)
        latest = latest_materialization(instance, key)
        if latest is None:
            yield f"{name} was wiped after the dataset was built"
        elif latest.storage_id != made.storage_id and latest.data_version != made.data_version:
            yield f"{name} was made again after the dataset was built"
        else:
            waiting.append((key, latest))
    seen = set()
    while waiting:
        key, own = waiting.pop()
        for parent, read in own.inputs.items():
            above = latest_materialization(instance, parent)
            if above is None or (key, parent) in seen:
                continue
            seen.add((key, parent))
            if read.is_still(above):
                waiting.append((parent, above))
            else:
                yield (
                    f"{parent.to_user_string()} changed, and {key.to_user_string()}, which the "
                    "dataset rests on, was not made again since"
                )


@dataclass
class Ancestry:
    """The assets between a dataset and an asset, op or check that is about to read.

    Attributes:
        context: the caller's context.
    """

    context: Any
    _parents: dict[dg.AssetKey, set[dg.AssetKey]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look up the caller."""
        self.instance: dg.DagsterInstance = self.context.instance
        self.graph = asset_graph(self.context)
        op = getattr(self.context, "op_execution_context", self.context)
        definition = op.assets_def if op.has_assets_def else None
        self.is_asset = definition is not None
        made = set(definition.keys) if definition is not None else set()
        self.read: Wanted = {}
        for key in made:
            own = self._own_partitions(op, key)
            for parent in definition.asset_deps.get(key, ()):  # type: ignore[union-attr]
                if parent not in made:
                    self._add(self.read, parent, self._above(key, own, parent))
        if isinstance(self.context, dg.AssetCheckExecutionContext):
            for check in op.selected_asset_check_keys:
                self._add(self.read, check.asset_key, self._own_partitions(op, check.asset_key))

    def datasets(self) -> list[dg.AssetKey]:
        """Return the nearest filtered datasets above the caller."""
        found, waiting, seen = [], list(self.read), set()
        while waiting:
            key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            if self._is_dataset(key):
                found.append(key)
            else:
                waiting += self.parents(key)
        return sorted(found)

    def certified_assets(self) -> list[dg.AssetKey]:
        """Return every asset of the caller's project that has the check `certified`."""
        return sorted(
            check.asset_key for check in self.graph.asset_check_keys if check.name == CERTIFIED
        )

    def configured_anew(self, made: Collection[tuple[str, str]]) -> list[str]:
        """Return assets of the caller's project whose code version has changed since.

        Args:
            made: pairs of asset and code version that it was made with.
        """
        found = set()
        for name, version in made:
            key = dg.AssetKey.from_user_string(name)
            now = self.graph.get(key).code_version if self.graph.has(key) else None
            if now is not None and now != version:
                found.add(name)
        return sorted(found)

    def parents(self, key: dg.AssetKey) -> set[dg.AssetKey]:
        """Return an asset's parents, from the project or else from the event log."""
        if key not in self._parents:
            if self._is_known(key):
                self._parents[key] = set(self.graph.get(key).parent_keys)
            else:
                made = latest_materialization(self.instance, key)
                self._parents[key] = set(made.inputs) if made else set()
        return self._parents[key]

    def behind(self, dataset: dg.AssetKey) -> Iterator[tuple[str, bool]]:
        """Yield the assets in between that are out of date, or whose provenance is unknown.

        Args:
            dataset: the dataset to read.

        Yields:
            A clause for a person, and whether the provenance is unknown.
        """
        waiting, seen = list(self.read.items()), set()
        while waiting:
            key, partitions = waiting.pop()
            mark = (key, None if partitions is None else frozenset(partitions))
            if key == dataset or mark in seen or not self._leads_to(key, dataset):
                continue
            seen.add(mark)
            above: Wanted = {}
            for partition in [None] if partitions is None else sorted(partitions):
                yield from self._hop(key, partition, dataset, above)
            waiting += above.items()

    def _hop(
        self, key: dg.AssetKey, partition: str | None, dataset: dg.AssetKey, above: Wanted
    ) -> Iterator[tuple[str, bool]]:
        name = key.to_user_string() + ("" if partition is None else f" of {partition!r}")
        made = latest_materialization(self.instance, key, partition)
        inputs = {} if made is None else made.inputs
        for parent in sorted(self.parents(key)):
            if parent != dataset and not self._leads_to(parent, dataset):
                continue
            wanted = self._above(key, None if partition is None else {partition}, parent)
            self._add(above, parent, wanted)
            said = parent.to_user_string()
            if made is None:
                yield f"{name} was never materialised, so nothing says what it was made from", True
            elif parent not in inputs:
                yield f"{name} does not say which {said} it was made from", True
            else:
                read, newest = inputs[parent].storage_id, self._newest(parent, wanted)
                if newest is not None and (read is None or read < newest):
                    yield (
                        f"{name} was made from an older materialisation of {said}; materialise it "
                        "again",
                        False,
                    )

    def _newest(self, key: dg.AssetKey, partitions: set[str] | None) -> int | None:
        if partitions is None:
            made = latest_materialization(self.instance, key)
            return None if made is None else made.storage_id
        return max(latest_storage_ids(self.instance, key, partitions).values(), default=None)

    def _leads_to(self, key: dg.AssetKey, dataset: dg.AssetKey) -> bool:
        waiting, seen = [key], {key}
        while waiting:
            above = self.parents(waiting.pop())
            if dataset in above:
                return True
            waiting += above - seen
            seen |= above
        return False

    def _is_known(self, key: dg.AssetKey) -> bool:
        return self.graph.has(key) and not self.graph.get(key).metadata.get(_STUB)

    def _is_dataset(self, key: dg.AssetKey) -> bool:
        if self.graph.has(dg.AssetCheckKey(key, CERTIFIED)) or key.path[-1] == "filtered_dataset":
            return True
        made = latest_materialization(self.instance, key)
        return made is not None and MANIFEST in made.metadata

    def _own_partitions(self, op: Any, key: dg.AssetKey) -> set[str] | None:
        partitioned = self._is_known(key) and self.graph.get(key).partitions_def is not None
        return set(op.partition_keys) if partitioned and op.has_partitions else None

    def _above(
        self, key: dg.AssetKey, partitions: set[str] | None, parent: dg.AssetKey
    ) -> set[str] | None:
        """Return the partitions of a parent that some of an asset's partitions are made from."""
        if self._is_known(parent) and self._is_known(key):
            own, its = self.graph.get(key).partitions_def, self.graph.get(parent).partitions_def
            if its is None:
                return None
            subset = None
            if own is not None and partitions is not None:
                subset = own.empty_subset().with_partition_keys(partitions)
            mapped = self.graph.get_partition_mapping(
                key, parent
            ).get_upstream_mapped_partitions_result_for_partitions(
                subset, own, its, datetime.now(UTC), self.instance
            )
            return set(mapped.partitions_subset.get_partition_keys())
        # An asset of another code location: its partitions are in the event log.
        known = self.instance.get_materialized_partitions(parent)
        if not known:
            return None
        return partitions if partitions is not None and partitions <= known else set(known)

    @staticmethod
    def _add(wanted: Wanted, key: dg.AssetKey, partitions: set[str] | None) -> None:
        known = wanted.get(key)
        wanted[key] = partitions if known is None or partitions is None else known | partitions
