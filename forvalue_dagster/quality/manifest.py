"""The manifest of a filtered dataset: its shards, with the verdict on each.

It is metadata of the dataset's own materialisation, so it cannot belong to another. It is also
written as a file next to the dataset, signed if there is a key, for readers without Dagster.
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
        storage_id: its id in the event log.
        data_version: hash of its content.
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
        """Return the record of a materialisation."""
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
    """The source of a shard's rows: its file, or another asset.

    Attributes:
        asset: the source.
        read_by: the asset that holds the rows.
        storage_id: the source's latest id in the event log when it was read; None if unknown.
        data_version: state of the file, or data version of the asset.
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
        blocked_by: other reasons that keep it out; empty without any.
        made_from: asset → the materialisation that was read.
        source: source of its rows, if known.
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
    """The manifest of a filtered dataset.

    Attributes:
        shards: every valued shard, included or not.
        missing_shards: shards that are registered, but not valued.
        on_blocked_shard: "fail" or "exclude".
        partitions: name of the shards' dynamic partitions; None for other partitions.
        rows: counts "in", "kept", "dropped".
        selection: the policy, as plain values.
        refinement: record of the rows that were computed again, or None.
        policy: the gate's rules, as plain values.
        overrides: setting → its value in the run's configuration, and in the definition.
        overrides_allowed: whether the definition allows such overrides.
        override_reason: the reason of the overrides.
        made_from: asset → the materialisation that was read, for assets without shards.
        files: name of a file of the dataset → its SHA-256.
        dataset: the asset.
        made_at: time, as ISO 8601 in UTC.
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
        """Return the reasons why the dataset is not certified; empty if it is."""
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
        """Return the shards of the dataset that were removed or changed since.

        A shard that was made again with the same content, and whose blocking checks passed, has
        not changed. The event log is queried once for each asset, however many shards there are.
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
            KeyError: if it was written by another version.
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
    """Yield the shards whose file or upstream asset has changed since."""
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
            # Rows that were read again since, and are the same, were read from the current source.
            made = latest_materialization(
                instance, dg.AssetKey.from_user_string(source.read_by), shard
            )
            read = made.inputs.get(key) if made else None
            if read is None or not read.is_still(now):
                yield (
                    f"{name} of shard {shard!r} changed after its rows were read for the dataset"
                )
