"""The manifest of a filtered dataset: which shards it is made of, and what was said of each.

It is metadata of the dataset's own materialisation, so that it cannot be of another, and lies as
a file beside the dataset for whoever has no Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dagster as dg

from forvalue_dagster.quality.standing import latest_materialization
from forvalue_dagster.quality.verdicts import ShardVerdict

MANIFEST = "manifest"
CERTIFIED = "certified"


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a dataset.

    Attributes:
        verdict: of its noise gate.
        blocked_by: what else keeps it out; empty if nothing does.
        made_from: asset → storage id of the materialisation that was read.
    """

    verdict: ShardVerdict
    blocked_by: tuple[str, ...]
    made_from: dict[str, int]

    @property
    def shard(self) -> str:
        """The partition."""
        return self.verdict.shard

    @property
    def passed(self) -> bool:
        """Whether its rows may be in the dataset."""
        return self.verdict.passed and not self.blocked_by

    @property
    def summary(self) -> str:
        """One sentence for a person."""
        if not self.blocked_by:
            return self.verdict.summary
        return f"shard {self.shard!r}: {'; '.join(self.blocked_by)}"


@dataclass(frozen=True)
class Manifest:
    """What a filtered dataset is made of.

    Attributes:
        shards: every valued shard, in or out.
        missing_shards: registered, but not valued.
        on_blocked_shard: "fail" or "exclude".
        partitions: name of the dynamic partitions that shards are.
        rows: counts "in", "kept", "dropped".
        selection: the policy, as plain values.
        refinement: how rows were computed again, or None.
    """

    shards: tuple[ShardEntry, ...]
    missing_shards: tuple[str, ...]
    on_blocked_shard: Literal["fail", "exclude"]
    partitions: str
    rows: dict[str, int]
    selection: dict[str, Any]
    refinement: dict[str, Any] | None = None

    @property
    def blocked(self) -> list[str]:
        """One sentence for each shard that is left out."""
        return [entry.summary for entry in self.shards if not entry.passed] + [
            f"shard {shard!r}: not valued yet" for shard in self.missing_shards
        ]

    @property
    def passed(self) -> list[str]:
        """The shards whose rows may be in the dataset."""
        return [entry.shard for entry in self.shards if entry.passed]

    def objections(self) -> list[str]:
        """Return why the dataset is not certified; empty if it is."""
        found = self.blocked if self.on_blocked_shard == "fail" else []
        if not self.passed:
            found = [*found, "no shard passed"]
        if self.rows["kept"] < 1:
            found = [*found, "no row was kept"]
        return found

    def outdated(self, instance: dg.DagsterInstance) -> list[str]:
        """Return which shards of the dataset were made again or taken away since."""
        registered = set(instance.get_dynamic_partitions(self.partitions))
        found = []
        for entry in self.shards:
            if not entry.passed:
                continue
            if entry.shard not in registered:
                found.append(f"shard {entry.shard!r} was withdrawn after the dataset was built")
                continue
            for name, storage_id in entry.made_from.items():
                latest = latest_materialization(
                    instance, dg.AssetKey.from_user_string(name), entry.shard
                )
                if latest is None or latest.storage_id != storage_id:
                    what = "wiped" if latest is None else "made again"
                    found.append(
                        f"{name} of shard {entry.shard!r} was {what} after the dataset was built"
                    )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` is the inverse."""
        plain = asdict(self)
        for record, entry in zip(plain["shards"], self.shards, strict=True):
            record |= {"shard": entry.shard, "passed": entry.passed}
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Manifest:
        """Rebuild a stored manifest."""
        shards: Sequence[Mapping[str, Any]] = plain["shards"]
        return cls(
            **{name: plain[name] for name in cls.__dataclass_fields__}
            | {
                "missing_shards": tuple(plain["missing_shards"]),
                "shards": tuple(
                    ShardEntry(
                        ShardVerdict(**record["verdict"]),
                        tuple(record["blocked_by"]),
                        dict(record["made_from"]),
                    )
                    for record in shards
                ),
            }
        )
