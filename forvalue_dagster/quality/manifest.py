"""The manifest of a filtered dataset: which shards it is made of, and what was said of each.

It is metadata of the dataset's own materialisation, so that it cannot be of another, and lies as
a file beside the dataset for whoever has no Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dagster as dg

from forvalue_dagster.quality.standing import check_standing, latest_materialization
from forvalue_dagster.quality.verdicts import KeptNoise, ShardVerdict

MANIFEST = "manifest"
CERTIFIED = "certified"


@dataclass(frozen=True)
class MadeFrom:
    """One materialisation that a shard of a dataset was read from.

    Attributes:
        storage_id: its place in the event log.
        data_version: its content.
        checks: blocking checks that had passed for it.
    """

    storage_id: int
    data_version: str
    checks: tuple[str, ...]


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a dataset.

    Attributes:
        verdict: of its noise gate.
        blocked_by: what else keeps it out; empty if nothing does.
        made_from: asset → what was read of it.
    """

    verdict: ShardVerdict
    blocked_by: tuple[str, ...]
    made_from: dict[str, MadeFrom]

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
        partitions: name of the dynamic partitions that shards are; None if they are others.
        rows: counts "in", "kept", "dropped".
        selection: the policy, as plain values.
        refinement: how rows were computed again, or None.
        noise: of the rows kept; None if the manifest is older than this figure.
    """

    shards: tuple[ShardEntry, ...]
    missing_shards: tuple[str, ...]
    on_blocked_shard: Literal["fail", "exclude"]
    partitions: str | None
    rows: dict[str, int]
    selection: dict[str, Any]
    refinement: dict[str, Any] | None = None
    noise: KeptNoise | None = None

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
        if self.noise is not None and not self.noise.passed:
            found = [*found, self.noise.summary]
        return found

    def outdated(self, instance: dg.DagsterInstance) -> list[str]:
        """Return which shards of the dataset were taken away since, or hold something else.

        A shard that was made again with the same content, and whose blocking checks hold for it,
        is the same shard.
        """
        registered = None
        if self.partitions is not None:
            registered = set(instance.get_dynamic_partitions(self.partitions))
        found = []
        for entry in self.shards:
            if not entry.passed:
                continue
            if registered is not None and entry.shard not in registered:
                found.append(f"shard {entry.shard!r} was withdrawn after the dataset was built")
                continue
            for name, made in entry.made_from.items():
                key = dg.AssetKey.from_user_string(name)
                latest = latest_materialization(instance, key, entry.shard)
                if latest is not None and latest.storage_id == made.storage_id:
                    continue
                if latest is None or latest.data_version != made.data_version:
                    what = "wiped" if latest is None else "made again"
                    found.append(
                        f"{name} of shard {entry.shard!r} was {what} after the dataset was built"
                    )
                    continue
                for check in made.checks:
                    standing = check_standing(
                        instance, dg.AssetCheckKey(key, check), latest, entry.shard
                    )
                    if not standing.holds:
                        found.append(standing.summary)
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
            **{name: plain[name] for name in cls.__dataclass_fields__ if name in plain}
            | {
                "noise": KeptNoise(**plain["noise"]) if plain.get("noise") else None,
                "missing_shards": tuple(plain["missing_shards"]),
                "shards": tuple(
                    ShardEntry(
                        ShardVerdict(**record["verdict"]),
                        tuple(record["blocked_by"]),
                        {
                            name: MadeFrom(**made | {"checks": tuple(made["checks"])})
                            for name, made in record["made_from"].items()
                        },
                    )
                    for record in shards
                ),
            }
        )
