"""The check on a selection: are kept rows worth more, without starving a shard or group?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg
import polars as pl

from forvalue_dagster.orchestration.options.policies import WarningPolicy

SELECTION = "selection"


def check_selection(
    key: dg.AssetKey,
    kept: pl.DataFrame,
    shards: Mapping[str, pl.DataFrame],
    groups: Sequence[str],
    warnings: WarningPolicy,
) -> dg.AssetCheckResult:
    """Compare the rows kept with the scored rows of the shards that passed.

    Args:
        key: key of the filtered dataset.
        kept: the rows kept, with their scores.
        shards: shard → value scores, of the shards that passed.
        groups: value columns of the validation groups, if there are several.
        warnings: the thresholds of warnings.
    """
    scored = pl.concat(shards.values(), how="diagonal").filter(pl.col("status") == "scored")
    problems = []
    mean, before = _mean(kept, "value"), _mean(scored, "value")
    if len(kept) < len(scored) and not mean > before:
        problems.append(f"the rows kept have a mean value of {mean:.4g}, all rows of {before:.4g}")
    even = len(kept) / max(len(scored), 1)
    records: list[dict[str, str | int]] = []
    for shard, rows in shards.items():
        own = rows.filter(pl.col("status") == "scored")
        taken = kept.filter(pl.col("shard") == shard)
        records.append(
            {
                "shard": shard,
                "scored": len(own),
                "kept": len(taken),
                "response_tokens_kept": int(taken["response_tokens"].sum()),
            }
        )
        if len(taken) < warnings.min_source_share * even * len(own):
            problems.append(f"{len(taken)} of {len(own)} rows of shard {shard!r} are kept")
    for group in groups if len(kept) < len(scored) else ():
        if group in scored.columns and not _mean(kept, group) > _mean(scored, group):
            problems.append(f"the rows kept are no better for {group.removeprefix('value_')!r}")
    tokens, all_tokens = (int(table["response_tokens"].sum()) for table in (kept, scored))
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=SELECTION,
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(problems)
        or f"{len(kept)} of {len(scored)} rows and {tokens} of {all_tokens} response tokens kept; "
        f"mean value {mean:.4g} against {before:.4g}.",
        metadata={
            "mean_value_kept": round(mean, 6),
            "mean_value_scored": round(before, 6),
            "response_tokens_kept": tokens,
            "response_tokens_scored": all_tokens,
            "by_shard": dg.MetadataValue.table(
                [dg.TableRecord(record) for record in records],
                dg.TableSchema(
                    [dg.TableColumn("shard")]
                    + [
                        dg.TableColumn(name, "int")
                        for name in ("scored", "kept", "response_tokens_kept")
                    ]
                ),
            ),
        },
    )


def _mean(rows: pl.DataFrame, column: str) -> float:
    return float(rows[column].mean() or 0.0)  # type: ignore[arg-type]
