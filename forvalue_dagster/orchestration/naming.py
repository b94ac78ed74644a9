"""What the graph's pieces are called, and how they are partitioned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg


@dataclass(frozen=True)
class Naming:
    """Names of one instance of the graph; two instances differ in the prefix.

    Attributes:
        prefix: put before every asset key; also names jobs, sensor and partitions.
        group: the group in the UI.
    """

    prefix: Sequence[str] = ()
    group: str = "forvalue"

    @property
    def shards(self) -> dg.DynamicPartitionsDefinition:
        """The shards of raw data, one partition each."""
        return dg.DynamicPartitionsDefinition(name=self.name("shards"))

    def key(self, name: str) -> dg.AssetKey:
        """Return the key of an asset."""
        return dg.AssetKey([*self.prefix, name])

    def name(self, name: str) -> str:
        """Return the name of a job, a sensor or a set of partitions."""
        return "_".join([*self.prefix, "forvalue", name])
