"""A one-page report on a filtered dataset, for people without the UI, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import polars as pl

from forvalue_dagster.orchestration.display.plots import as_svg, histogram_figure, interval_figure
from forvalue_dagster.quality.manifest import Manifest

_EXTREMES = 10
_SHOWN_INTERVALS = 40
_SCORES = ("value", "alignment", "noise_probability", "nll", "response_tokens")


def build_report(
    manifest: Manifest,
    decided: pl.DataFrame,
    scores: Mapping[str, pl.DataFrame],
    groups: Sequence[str],
    configuration: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect the report on a dataset as plain values; rows by their ids, never by text.

    Args:
        manifest: manifest of the dataset.
        decided: shard, row number and scores of every row, with `drop_reason`, null if kept.
        scores: shard → its value scores.
        groups: columns of the values for validation groups.
        configuration: name of a part → its settings.
    """
    kept = decided.filter(pl.col("drop_reason").is_null())
    counts = dict(kept.group_by("shard").len().iter_rows())
    shards = []
    for entry in manifest.shards:
        verdict, table = entry.verdict, scores[entry.shard]
        scored = table.filter(pl.col("status") == "scored").height
        shards.append(
            {
                "shard": entry.shard,
                "passed": entry.passed,
                "verdict": verdict.verdict,
                "summary": entry.summary,
                "noise": verdict.noise_fraction,
                "noise_lower": verdict.noise_lower,
                "noise_upper": verdict.noise_upper,
                "noise_of_all": verdict.noise_of_all,
                "unexplained": verdict.unexplained,
                "distinct": verdict.distinct,
                "limit": verdict.max_noise_fraction,
                "rows": len(table),
                "scored": scored,
                "skipped": len(table) - scored,
                "kept": counts.get(entry.shard, 0),
                "checks": sorted(
                    f"{name}.{check}"
                    for name, made in entry.made_from.items()
                    for check in made.checks
                ),
            }
        )
    dropped = decided.filter(pl.col("drop_reason").is_not_null())
    ranked = kept.sort("value", descending=True)
    profiles = sorted({p for table in scores.values() for p in table["profile"].unique()})
    return {
        "rows": manifest.rows,
        "shards": shards,
        "missing_shards": list(manifest.missing_shards),
        "objections": manifest.objections(),
        "noise": None if manifest.noise is None else asdict(manifest.noise),
        "noise_summary": None if manifest.noise is None else manifest.noise.summary,
        "dropped": dropped.group_by("drop_reason", "shard")
        .len("rows")
        .sort("rows", "drop_reason", "shard", descending=[True, False, False])
        .to_dicts(),
        "values": {name: _quantiles(kept, dropped, name) for name in ("value", *groups)},
        "best": _rows(ranked.head(_EXTREMES), scores),
        "worst": _rows(ranked.tail(_EXTREMES).reverse(), scores),
        "configuration": {
            **{name: dict(part) for name, part in configuration.items()},
            "selection": manifest.selection,
            "refinement": manifest.refinement,
            "on_blocked_shard": manifest.on_blocked_shard,
            "profiles": profiles,
        },
    }


def render_report(report: Mapping[str, Any], decided: pl.DataFrame) -> str:
    """Return the page: HTML that needs no other file.

    Args:
        report: result of `build_report`.
        decided: the same table as in `build_report`.
    """
    from jinja2 import Environment, StrictUndefined

    kept = pl.col("drop_reason").is_null()
    plots = [
        as_svg(
            histogram_figure(
                {"kept": decided.filter(kept)[name], "dropped": decided.filter(~kept)[name]},
                title=f"{name.replace('_', ' ')} of the rows kept and dropped",
                unit="value",
            )
        )
        for name in report["values"]
    ]
    judged = [shard for shard in report["shards"] if shard["noise"] is not None]
    judged.sort(key=lambda shard: -shard["noise"])
    if judged:
        figure = interval_figure(
            {
                shard["shard"]: (shard["noise_lower"], shard["noise"], shard["noise_upper"])
                for shard in judged[:_SHOWN_INTERVALS]
            },
            title="Estimated share of noisy rows, with its 95 % interval",
            unit="share; the limit is dashed",
            limit=judged[0]["limit"],
        )
        plots.insert(0, as_svg(figure))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(template).render(**report, plots=plots, scores=_SCORES)


def _rows(rows: pl.DataFrame, scores: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Return a few rows with their ids."""
    shown = rows.select("shard", "row", pl.col(_SCORES).round(4))
    ids = [
        scores[shard].filter(pl.col("row") == row)["sample_id"][0]
        for shard, row in shown.select("shard", "row").iter_rows()
    ]
    return shown.with_columns(pl.Series("sample_id", ids, pl.String)).to_dicts()


def _quantiles(kept: pl.DataFrame, dropped: pl.DataFrame, name: str) -> dict[str, Any]:
    """Return five-number summaries of the values of kept and dropped rows."""
    return {
        side: {
            f"{share:.0%}": None if table[name].is_empty() else table[name].quantile(share)
            for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        }
        for side, table in (("kept", kept), ("dropped", dropped))
    }
