"""What the valuation is for: a finetune behind the gate, and a report on whether it pays."""

import base64
import io
from pathlib import Path

import dagster as dg
import polars as pl

import forvalue_dagster as fv
from assets.selection import SELECTED, Comparison, arms, compare, differences
from assets.valuation import POLICY

GROUP = "finetuning"
_INK, _BAR = "#808792", "#4f8ff7"


class ReportConfig(dg.Config):
    """How the selection is compared with other choices of rows."""

    seeds: int = 5
    rows: int = 24


def finetuning_definitions(root: Path, model: fv.ModelConfig | None = None) -> dg.Definitions:
    """Build `finetuned_adapter` and `selection_report` over the project's filtered dataset.

    Args:
        root: holds `data/held_out.jsonl`; adapters are written below it.
        model: that is finetuned; the embedded one by default.
    """
    base = model or fv.ModelConfig()

    @dg.asset(
        group_name=GROUP,
        kinds={"peft", "torch"},
        automation_condition=dg.AutomationCondition.eager()
        & dg.AutomationCondition.all_deps_blocking_checks_passed(),
        description="A LoRA adapter finetuned on the filtered dataset, behind the gate.",
    )
    def finetuned_adapter(
        context: dg.AssetExecutionContext, filtered_dataset: pl.LazyFrame
    ) -> dg.MaterializeResult[None]:
        gate = fv.require_certified(context)
        rows = filtered_dataset.collect()
        folder = root / "adapters" / f"{gate.storage_id}"
        adapter, used = fv.train_adapter(
            base, rows, "response", fv.WarmUp(), folder, context.log.info
        )
        return dg.MaterializeResult(
            metadata={
                "adapter": dg.MetadataValue.path(str(adapter)),
                "rows": len(used),
                "shards": ", ".join(gate.manifest.passed) if gate.manifest else "",
            }
        )

    # Shards that are registered but not valued yet take no part.
    every_shard = {"allow_missing_partitions": True}

    @dg.asset(
        group_name=GROUP,
        kinds={"peft", "torch"},
        ins={
            "value_scores": dg.AssetIn(metadata=every_shard),
            "raw_finetuning_data": dg.AssetIn(metadata=every_shard),
        },
        description="Held-out loss after short finetunes on the rows that the policy selects, on "
        "random rows, on rows of the lowest loss and on all rows, at equal tokens and steps.",
    )
    def selection_report(
        context: dg.AssetExecutionContext,
        config: ReportConfig,
        value_scores: dict[str, pl.LazyFrame],
        raw_finetuning_data: dict[str, pl.LazyFrame],
    ) -> dg.MaterializeResult[None]:
        shards = sorted(value_scores.keys() & raw_finetuning_data.keys())
        scores = pl.concat([value_scores[shard].collect() for shard in shards], how="diagonal")
        columns = ["shard", "row", "messages", "tools", "images", "problem"]
        rows = pl.concat([raw_finetuning_data[s].select(columns).collect() for s in shards])
        held_out = fv.read_rows(root / "data" / "held_out.jsonl")
        comparison = Comparison(rows=config.rows)
        results = pl.concat(
            compare(
                rows,
                arms(scores, {SELECTED: POLICY}, comparison, seed),
                held_out,
                base,
                comparison,
                seed,
                context.log.info,
            )
            for seed in range(config.seeds)
        )
        gains = differences(results)
        return dg.MaterializeResult(
            metadata={
                "gain": dg.MetadataValue.table(
                    [
                        dg.TableRecord(
                            {k: round(v, 4) if isinstance(v, float) else v for k, v in gain.items()}
                        )
                        for gain in gains.to_dicts()
                    ]
                ),
                "held_out_loss": dg.MetadataValue.table(
                    [dg.TableRecord(record) for record in results.to_dicts()]
                ),
                "plot": dg.MetadataValue.md(gain_plot(gains)),
            }
        )

    return dg.Definitions(assets=[finetuned_adapter, selection_report])


def gain_plot(gains: pl.DataFrame) -> str:
    """Draw how much lower the held-out loss of the selected rows is, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    middle = gains["gain"].to_numpy()
    spread = [middle - gains["lower"].to_numpy(), gains["upper"].to_numpy() - middle]
    axes.barh(gains["arm"].to_list(), middle, xerr=spread, color=_BAR, ecolor=_INK)
    axes.axvline(0, color=_INK, linewidth=1)
    axes.set_xlabel("held-out loss above that of the selected rows, nats per token", color=_INK)
    axes.tick_params(colors=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"![Gain of the selected rows](data:image/png;base64,{encoded})"
