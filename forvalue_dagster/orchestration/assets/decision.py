"""Decide which rows are kept, from the verdicts on shards and the selection policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

import dagster as dg
import polars as pl

from forvalue_dagster.data.digest import digest
from forvalue_dagster.engine.columns import PLACE
from forvalue_dagster.engine.selection import select_rows
from forvalue_dagster.options.selection import Selection
from forvalue_dagster.orchestration.options.policies import SelectionPolicy
from forvalue_dagster.quality.manifest import ShardEntry

_KEPT_SCORES = [
    "value",
    "alignment",
    "value_per_token",
    "noise_probability",
    "nll",
    "response_tokens",
    "truncated",
]


def stop_or_exclude(
    context: dg.AssetExecutionContext,
    entries: Iterable[ShardEntry],
    missing: Iterable[str],
    on_blocked_shard: str,
) -> None:
    """Fail the run if a blocked shard stops the dataset; log blocked shards in any case."""
    blocked = [entry.summary for entry in entries if not entry.passed]
    blocked += [f"shard {shard!r}: not valued yet" for shard in missing]
    if not blocked:
        return
    listing = "; ".join(blocked)
    if on_blocked_shard == "fail":
        raise dg.Failure(
            f"Blocked: {listing}. Mend or remove these shards, or set on_blocked_shard to "
            "'exclude' to build the dataset without them.",
            allow_retries=False,
        )
    context.log.warning(f"Excluded from the filtered dataset: {listing}.")


def policy_in_force(
    context: dg.AssetExecutionContext, selection: SelectionPolicy, entries: Iterable[ShardEntry]
) -> SelectionPolicy:
    """Return the policy; if an unreliable probe is allowed, it drops no rows."""
    unfit = any(
        entry.passed
        and entry.verdict.verdict == "uncertified"
        and entry.verdict.noise_fraction is None
        for entry in entries
    )
    if selection.max_noise_probability is None or not unfit:
        return selection
    context.log.warning(
        "max_noise_probability drops no rows: the noise probe is not reliable, and the gate's "
        "policy allows that."
    )
    return selection.model_copy(update={"max_noise_probability": None})


def decide(
    scores: Mapping[str, pl.DataFrame], entries: Iterable[ShardEntry], selection: Selection
) -> pl.DataFrame:
    """Return every row's shard, row number and scores with `drop_reason`, null for a kept row."""
    passed, blocked = [], []
    for entry in entries:
        if entry.passed:
            passed.append(scores[entry.shard])
        else:
            reason = pl.lit(f"blocked: {entry.summary}")
            blocked.append(scores[entry.shard].with_columns(drop_reason=reason))
    if not passed:
        raise dg.Failure(
            "No shard passed its checks, so there is nothing to select from. See the checks "
            "of raw_finetuning_data and value_scores.",
            allow_retries=False,
        )
    selected = select_rows(pl.concat(passed, how="diagonal"), selection)
    decided = pl.concat([selected, *blocked], how="diagonal")
    values = [name for name in decided.columns if name.startswith("value_")]
    return decided.select(*PLACE, *dict.fromkeys([*_KEPT_SCORES, *values]), "drop_reason")


def content_version(decided: pl.DataFrame, entries: Iterable[ShardEntry]) -> dg.DataVersion:
    """Return the data version: a hash of the rows' content and scores, and the decisions."""
    shards = set(decided["shard"])
    made_from = [
        (entry.shard, asset, made.data_version)
        for entry in entries
        for asset, made in entry.made_from.items()
        if entry.shard in shards
    ]
    return dg.DataVersion(sha256(f"{digest(decided)} {sorted(made_from)}".encode()).hexdigest())
