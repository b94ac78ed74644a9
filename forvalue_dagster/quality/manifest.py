"""The manifest of a filtered dataset: which shards it is made of, and what was said of each.

It is metadata of the dataset's own materialisation, so that it cannot be of another, and lies as
a file beside the dataset, signed if there is a key, for whoever has no Dagster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import dagster as dg

from forvalue_dagster.quality.event_log import latest_storage_ids, latest_versions
from forvalue_dagster.quality.standing import (
    Materialization,
    Read,
    check_standing,
    latest_materialization,
)
from forvalue_dagster.quality.verdicts import KeptNoise, ShardVerdict

MANIFEST = "manifest"
CERTIFIED = "certified"


@dataclass(frozen=True)
class MadeFrom:
    """One materialisation that a dataset, or a shard of it, was made from.

    Attributes:
        storage_id: its place in the event log.
        data_version: its content.
        checks: blocking checks that had passed for it.
        digest: the SHA-256 of its file; empty if the event log does not say.
        code_version: version of the code and settings that made it.
    """

    storage_id: int
    data_version: str
    checks: tuple[str, ...] = ()
    digest: str = ""
    code_version: str = ""

    @classmethod
    def of(cls, made: Materialization, checks: Sequence[str] = ()) -> MadeFrom:
        """Note down a materialisation."""
        digest = made.metadata.get("sha256")
        return cls(
            made.storage_id,
            made.data_version,
            tuple(checks),
            "" if digest is None else str(digest.value),
            made.code_version,
        )


@dataclass(frozen=True)
class Source:
    """What the rows of a shard were read from: its file, or another asset.

    Attributes:
        asset: the source.
        read_by: the asset that holds the rows.
        storage_id: the event log ended here for the source; None if it is not known.
        data_version: the state of the file, or the content of the asset.
    """

    asset: str
    read_by: str
    storage_id: int | None
    data_version: str


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a dataset.

    Attributes:
        verdict: verdict of its noise gate.
        blocked_by: what else keeps it out; empty if nothing does.
        made_from: asset → what was read of it.
        source: what its rows were read from, if that is known.
    """

    verdict: ShardVerdict
    blocked_by: tuple[str, ...]
    made_from: dict[str, MadeFrom]
    source: Source | None = None

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
        refinement: record of the rows that were computed again, or None.
        policy: the gate's rules, as plain values.
        overrides: setting → what the run's configuration made of it, and what the definition says.
        overrides_allowed: whether the definition lets a run do so.
        override_reason: why it did.
        made_from: asset → what was read of it, of the assets that are not shards.
        files: name of a file of the dataset → its SHA-256.
        dataset: the asset.
        made_at: when, as ISO 8601 in UTC.
        noise: estimated noise of the rows kept; None in a manifest older than this figure.
    """

    shards: tuple[ShardEntry, ...]
    missing_shards: tuple[str, ...]
    on_blocked_shard: Literal["fail", "exclude"]
    partitions: str | None
    rows: dict[str, int]
    selection: dict[str, Any]
    refinement: dict[str, Any] | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    overrides_allowed: bool = False
    override_reason: str | None = None
    made_from: dict[str, MadeFrom] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    dataset: str = ""
    made_at: str = ""
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

    @property
    def overridden(self) -> list[str]:
        """One clause for each setting that the run's configuration changed."""
        why = self.override_reason or "no reason given"
        return [
            f"{name} was {said['run']!r} in this run and is {said['definition']!r} in the "
            f"definition ({why})"
            for name, said in self.overrides.items()
        ]

    def objections(self) -> list[str]:
        """Return why the dataset is not certified; empty if it is."""
        found = self.blocked if self.on_blocked_shard == "fail" else []
        if not self.passed:
            found = [*found, "no shard passed"]
        if self.rows["kept"] < 1:
            found = [*found, "no row was kept"]
        if not self.overrides_allowed:
            found = [*found, *(f"{clause}, which it does not allow" for clause in self.overridden)]
        if self.noise is not None and not self.noise.passed:
            found = [*found, self.noise.summary]
        return found

    def outdated(self, instance: dg.DagsterInstance) -> list[str]:
        """Return which shards of the dataset were taken away since, or hold something else.

        A shard that was made again with the same content, and whose blocking checks hold for it,
        is the same shard. The event log is asked once for each asset, whatever the shards.
        """
        entries = {entry.shard: entry for entry in self.shards if entry.passed}
        found = []
        if self.partitions is not None:
            registered = set(instance.get_dynamic_partitions(self.partitions))
            for shard in entries.keys() - registered:
                found.append(f"shard {shard!r} was withdrawn after the dataset was built")
                del entries[shard]
        for name in dict.fromkeys(name for entry in entries.values() for name in entry.made_from):
            key = dg.AssetKey.from_user_string(name)
            now = latest_storage_ids(instance, key, entries)
            for shard, entry in entries.items():
                made = entry.made_from.get(name)
                if made is not None and now.get(shard) != made.storage_id:
                    found += _made_again(instance, key, shard, made)
        return sorted(found) + list(_sources_changed(instance, list(entries.values())))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` is the inverse."""
        plain = asdict(self)
        for record, entry in zip(plain["shards"], self.shards, strict=True):
            record |= {"shard": entry.shard, "passed": entry.passed}
        return plain | {"objections": self.objections()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Manifest:
        """Rebuild a stored manifest.

        Raises:
            KeyError: if it is of another version.
        """
        shards: Sequence[Mapping[str, Any]] = plain["shards"]
        return cls(
            **{name: plain[name] for name in cls.__dataclass_fields__ if name in plain}
            | {
                "noise": KeptNoise(**plain["noise"]) if plain.get("noise") else None,
                "missing_shards": tuple(plain["missing_shards"]),
                "made_from": _made_from(plain["made_from"]),
                "shards": tuple(
                    ShardEntry(
                        ShardVerdict(**record["verdict"]),
                        tuple(record["blocked_by"]),
                        _made_from(record["made_from"]),
                        None if record["source"] is None else Source(**record["source"]),
                    )
                    for record in shards
                ),
            }
        )


def _made_from(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, MadeFrom]:
    return {
        name: MadeFrom(**{**made, "checks": tuple(made["checks"])}) for name, made in plain.items()
    }


def _made_again(
    instance: dg.DagsterInstance, key: dg.AssetKey, shard: str, made: MadeFrom
) -> Iterator[str]:
    latest = latest_materialization(instance, key, shard)
    if latest is None or latest.data_version != made.data_version:
        what = "wiped" if latest is None else "made again"
        yield (f"{key.to_user_string()} of shard {shard!r} was {what} after the dataset was built")
        return
    for check in made.checks:
        standing = check_standing(instance, dg.AssetCheckKey(key, check), latest, shard)
        if not standing.holds:
            yield standing.summary


def _sources_changed(instance: dg.DagsterInstance, entries: Sequence[ShardEntry]) -> Iterator[str]:
    """Yield the shards whose file, or whose upstream asset, is another one by now."""
    known: dict[str, list[tuple[str, Source]]] = {}
    for entry in entries:
        if entry.source is not None:
            known.setdefault(entry.source.asset, []).append((entry.shard, entry.source))
    for name, shards in known.items():
        key = dg.AssetKey.from_user_string(name)
        partitions = [shard for shard, _ in shards]
        places = latest_storage_ids(instance, key, partitions)
        versions = latest_versions(instance, key, partitions)
        whole = None if places else latest_materialization(instance, key)
        for shard, source in shards:
            now = whole
            if shard in places:
                version = versions.get(shard, str(places[shard]))
                now = Materialization.plain(places[shard], version)
            if now is None or Read(source.storage_id, source.data_version).is_still(now):
                continue
            # Rows that were read again since, and are the same, were read from what is there now.
            made = latest_materialization(
                instance, dg.AssetKey.from_user_string(source.read_by), shard
            )
            read = made.inputs.get(key) if made else None
            if read is None or not read.is_still(now):
                yield (
                    f"{name} of shard {shard!r} changed after its rows were read for the dataset"
                )
