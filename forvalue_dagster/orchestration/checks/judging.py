"""Verdicts on shards from their scores and the noise probe, and other reasons to block them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from forvalue_dagster.data.digest import digest
from forvalue_dagster.engine.columns import PLACE
from forvalue_dagster.options.gate import GateRules
from forvalue_dagster.orchestration.naming import BLOCKING_CHECKS, Naming
from forvalue_dagster.quality.manifest import MadeFrom, ShardEntry
from forvalue_dagster.quality.standing import check_standing, latest_materialization
from forvalue_dagster.quality.verdicts import ShardVerdict, judge_shard
from forvalue_dagster.storage.tensors import TensorFile
from forvalue_dagster.valuation.noise import NoiseProbe
from forvalue_dagster.valuation.prompt_space import PromptSpace

if TYPE_CHECKING:
    from forvalue_dagster.valuation.profile import ValidationProfile


def stored_profile(stored: TensorFile) -> ValidationProfile:
    """Read a whole stored profile."""
    from forvalue_dagster.valuation.profile import ValidationProfile

    return ValidationProfile.from_tensors(stored.tensors, stored.metadata)


@dataclass(frozen=True)
class StoredProbe:
    """The parts of a stored validation profile that a shard's verdict needs.

    Attributes:
        noise: the noise probe, if one was fitted.
        prompts: the prompt space, if one was fitted.
        identity: identity of the profile.
    """

    noise: NoiseProbe | None
    prompts: PromptSpace | None
    identity: str

    @classmethod
    def of(cls, stored: TensorFile) -> StoredProbe:
        """Read them from the stored profile."""
        from forvalue_dagster.valuation.profile import stored_probe, stored_prompts

        return cls(
            stored_probe(stored.tensors, stored.metadata),
            stored_prompts(stored.tensors),
            str(stored.metadata["identity"]),
        )

    def judge(self, shard: str, scores: pl.DataFrame, rules: GateRules) -> ShardVerdict:
        """Return the verdict on a shard from its value scores."""
        return judge_shard(shard, scores, self.noise, self.prompts, self.identity, rules)


def judge_shards(
    instance: dg.DagsterInstance,
    naming: Naming,
    scores: Mapping[str, pl.DataFrame],
    raw: Mapping[str, pl.LazyFrame],
    probe: StoredProbe,
    rules: GateRules,
) -> list[ShardEntry]:
    """Return for every shard whether it may be in the dataset, and why not.

    Args:
        instance: the Dagster instance.
        naming: the graph's names.
        scores: shard → its value scores.
        raw: shard → its rows.
        probe: noise probe of the validation profile.
        rules: the gate's rules.
    """
    entries = []
    for shard, own in scores.items():
        made_from: dict[str, MadeFrom] = {}
        blocked_by = []
        for name, checks in BLOCKING_CHECKS.items():
            key = naming.key(name)
            materialization = latest_materialization(instance, key, shard)
            if materialization is None:
                blocked_by.append(f"{key.to_user_string()} has no materialisation on this instance")
                continue
            made_from[key.to_user_string()] = MadeFrom(
                materialization.storage_id, materialization.data_version, checks
            )
            for check in checks:
                standing = check_standing(
                    instance, dg.AssetCheckKey(key, check), materialization, shard
                )
                if not standing.holds:
                    blocked_by.append(standing.summary)
        scores_key = naming.key("value_scores").to_user_string()
        if scores_key in made_from and made_from[scores_key].data_version != digest(own):
            blocked_by.append(
                "its stored scores are not those that were checked: compute its value scores again"
            )
        if mismatched := _mismatched_rows(own, raw[shard]):
            blocked_by.append(
                f"{mismatched} of its rows are not those that were valued: compute its value "
                "scores again"
            )
        entries.append(ShardEntry(probe.judge(shard, own, rules), tuple(blocked_by), made_from))
    return entries


def shard_table(entries: Iterable[ShardEntry]) -> dg.TableMetadataValue:
    """Return a table of every shard's verdict and figures."""
    columns = (
        "noise_fraction",
        "noise_lower",
        "noise_upper",
        "max_noise_fraction",
        "unexplained",
        "noise_of_all",
        "shift",
    )
    records = []
    for entry in entries:
        verdict = entry.verdict
        figures = {name: getattr(verdict, name) for name in columns}
        records.append(
            dg.TableRecord(
                {
                    "shard": entry.shard,
                    "in the dataset": entry.passed,
                    "verdict": verdict.verdict,
                    **{
                        name: None if value is None else round(value, 4)
                        for name, value in figures.items()
                    },
                    "scored": verdict.scored,
                    "distinct": verdict.distinct,
                    "blocked by": "; ".join(entry.blocked_by),
                }
            )
        )
    schema = dg.TableSchema(
        [
            dg.TableColumn("shard"),
            dg.TableColumn("in the dataset", "bool"),
            dg.TableColumn("verdict"),
            *(dg.TableColumn(name, "float") for name in columns),
            dg.TableColumn("scored", "int"),
            dg.TableColumn("distinct", "int"),
            dg.TableColumn("blocked by"),
        ]
    )
    return dg.MetadataValue.table(records, schema)


def _mismatched_rows(scores: pl.DataFrame, raw: pl.LazyFrame) -> int:
    """Count rows of either table that the other does not have at the same place."""
    own = raw.select("sample_id", *PLACE).collect()
    key = ["sample_id", *PLACE]
    return (
        own.join(scores, on=key, how="anti", nulls_equal=True).height
        + scores.join(own, on=key, how="anti", nulls_equal=True).height
    )
