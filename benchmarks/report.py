"""Render docs/benchmarks.md from the committed results.

python -m benchmarks.report
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import RESULTS, medians
from benchmarks.rendering import result, table
from benchmarks.report_accelerator import accelerator, large_vocabularies, slow_device
from benchmarks.report_operations import (
    adoption,
    feature_store,
    gate_cost,
    many_shards,
    step_overhead,
)
from benchmarks.report_summary import summary
from benchmarks.report_vision import vision_passes, vision_tasks

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def forward_passes() -> str:
    measured, memory = result("forward_passes"), result("forward_passes_memory")
    middle = medians(measured["seconds"])
    rows = [
        (name.replace("_", " "), f"{seconds:.1f} s", f"{seconds / middle['plain']:.3f}")
        for name, seconds in middle.items()
    ]
    peaks = ", ".join(f"{name} rows {peak:,.0f}" for name, peak in memory["peak_megabytes"].items())
    growth = result("feature_memory")
    return f"""## The passes

`python -m benchmarks.forward_passes`: {measured["rows"]} GSM8K rows ({measured["tokens"]:,} tokens,
{measured["response_tokens"]:,} of them in responses), the same batches for every pass, in turns;
medians of {len(measured["seconds"]["plain"])} repeats. "plain" is `model(...).logits`. "response head" runs the
head on response positions only. "features" computes all statistics and token features. "exact" computes the value,
the alignment and all statistics.

{table(("pass", "median", "/ plain"), rows)}

Peak resident memory in MB, each in its own process (`--memory`): {peaks}. The feature pass of a tiny
model, where any growth would be visible (`python -m benchmarks.feature_memory`):
{growth["500 rows"]["peak_megabytes"]} MB at 500 rows, {growth["5000 rows"]["peak_megabytes"]} MB at 5,000.
"""


def fidelity() -> str:
    measured = result("feature_fidelity")
    metrics = ("plain", "preconditioned")
    rows = []
    first = next(iter(measured["fidelity"].values()))
    for form in first:
        cells: list[object] = [form, first[form]["plain"]["bytes"] or "not offered"]
        for forms in measured["fidelity"].values():
            cells += [
                f"{forms[form][m]['spearman']:.4f} / {forms[form][m]['top_overlap']:.2f}"
                for m in metrics
            ]
        rows.append(cells)
    header = [
        "kept per token",
        "bytes",
        *(f"{s}, {m}" for s in measured["fidelity"] for m in metrics),
    ]
    refined = [
        (
            f"{name}, {metric}",
            f"{sum(o['equal before'] for o in outcomes)} of {len(outcomes)}",
            f"{sum(o['equal after'] for o in outcomes)} of {len(outcomes)}",
            ", ".join(f"{o['forwarded share']:.0%}" for o in outcomes),
            f"{sum(o['resolved'] for o in outcomes)} of {len(outcomes)}",
        )
        for name, metrics_of in measured["refine at 10 %"].items()
        for metric, outcomes in metrics_of.items()
    ]
    return f"""## Features against the exact score

`python -m benchmarks.feature_fidelity`: Spearman / overlap of the top 10 % with the exact values, for
GSM8K (300 rows, 40 % damaged, response tokens) and the DataInf task (900 rows, all tokens).

{table(header, rows)}

Refining (`Refine()` with its defaults) with 10 % kept, on three random halves of each data set:

{
        table(
            (
                "data, metric",
                "kept set exact before",
                "after",
                "rows passed again",
                "resolved",
            ),
            refined,
        )
    }
"""


def revaluation() -> str:
    measured = result("revaluation")
    rows = [
        (name, f"{r['seconds']} s", f"{r['peak_megabytes']:,} MB")
        for name, r in measured["results"].items()
    ]
    return f"""## Valuing stored rows again

`python -m benchmarks.revaluation`: rows of {measured["tokens a row"]} response tokens, preconditioned, with
alignment; each run has its own process. One group over 100,000 rows is
**{measured["times faster, 1 group"]:.0f} times** faster than the feature pass over the same response tokens
(extrapolated from 200 rows, prompts included). The table takes {measured["stored bytes a token"]} bytes
a token on disk.

{table(("rows and groups", "seconds", "peak"), rows)}
"""


def layout() -> str:
    measured = result("feature_layout")
    rows = [
        (name, f"{r['write_seconds']} s", f"{r['scan_seconds']} s", r["bytes_a_token"])
        for name, r in measured["results"].items()
    ]
    return f"""## Layout of the feature table

`python -m benchmarks.feature_layout`: {measured["rows"]:,} rows of {measured["tokens a row"]} tokens, written
and then read window by window; the second reading is timed.

{table(("layout", "write", "full scan", "bytes a token"), rows)}
"""


def metric_choice() -> str:
    noise = result("gsm8k_noise")
    by_warm_up = noise["results by warm-up"]
    scores = ("value", "value_per_token", "alignment")
    header = ["metric", *(f"{warm_up}: {score}" for warm_up in by_warm_up for score in scores)]
    rows = [
        [
            metric,
            *(
                f"{by[metric][score]['clean_in_top_10']:.2f} / {by[metric][score]['auc']:.2f}"
                for by in by_warm_up.values()
                for score in scores
            ),
        ]
        for metric in next(iter(by_warm_up.values()))
    ]
    tasks = {tokens: result(f"datainf_task_{tokens}") for tokens in ("all", "response")}
    identified = [
        [
            name,
            *(
                f"{task['results'][name]['auc']:.4f} / {task['results'][name]['recall']:.3f}"
                for task in tasks.values()
            ),
            *(f"{task['results'][name]['seconds after the pass']} s" for task in tasks.values()),
        ]
        for name in tasks["all"]["results"]
    ]
    return f"""## Which metric

`python -m benchmarks.gsm8k_noise`: {noise["rows"][0]} GSM8K rows of which {
        noise["clean share"]:.0%} are
clean, against {
        noise["rows"][1]
    } validation rows. Share of clean rows among the top 10 % / ROC-AUC, without
warm-up, after one LoRA epoch (at most 12,000 tokens) on the validation rows, and on the noisy rows.

{table(header, rows)}

`python -m benchmarks.datainf_task`: AUC / recall of the training rows of a validation row's kind
({tasks["all"]["rows"][0]} × {
        tasks["all"]["rows"][1]
    } rows, every pair valued), and the seconds after the
forward pass ({tasks["all"]["seconds of the forward pass"]} s for all tokens).

{
        table(
            ("metric, source", "all tokens", "response tokens", "pairs, all", "pairs, response"),
            identified,
        )
    }
"""


def peer_methods() -> str:
    tables = []
    for tokens in ("all", "response"):
        measured = result(f"peer_methods_{tokens}")
        rows = []
        for name, ratio in measured["median seconds / exact For-Value"].items():
            own = measured["results"][name]
            found = f"{own['auc']:.3f} / {own['recall']:.3f}" if "auc" in own else "–"
            seconds = ", ".join(f"{s:.1f}" for s in own["seconds"])
            rows.append((name, seconds, ratio, found, own["peak_megabytes"]))
        (few,) = (value for key, value in measured.items() if key.startswith("seconds, "))
        padding = ", ".join(f"{name} {seconds} s" for name, seconds in few.items())
        header = ("method", "seconds", "median / exact", "AUC / recall", "peak MB")
        tables.append(f"""{tokens.capitalize()} tokens, {measured["rows"][0]} × {measured["rows"][1]} rows:

{table(header, rows)}

On 48 × 8 rows: {padding}. The published vocabulary cut moves values by up to
{measured["published, largest error relative to the largest value"]:.1%} of the largest (correlation
{measured["published, correlation with exact"]}).
""")
    listing = "\n".join(tables)
    return f"""## Beside other methods

`python -m benchmarks.peer_methods`: the DataInf task, the same batches for every method. The seconds cover the
passes over training and validation rows, and the values. LoRA gradients (rank 8, query and value projections) come
from one batched backward pass; hooks take the gradients of each sample, and the head runs at scored positions only.
"As published" is Algorithm 1 of the paper: it computes the logits of every position and cuts the vocabulary to the
tokens of the batch and of the validation rows, prompts included. This plugin computes one more product over the
vocabulary, at scored positions only, and is exact. If every token is scored, that product is the cost of being exact.
DataInf and the Hessian-free score use an untrained LoRA (B = 0), while the papers finetune it first. One process runs
all methods, so memory that the allocator keeps from one method counts in the peak of the next.

{listing}"""


def precision() -> str:
    measured = result("precision")
    rows = [
        (
            name,
            r["spearman"],
            r["top_overlap"],
            f"{r['largest error, in norms']:.4f}",
            f"{r['mean nll error']:.4f}",
        )
        for name, r in measured["results"].items()
    ]
    seconds = ", ".join(
        f"{name} {value} s" for name, value in measured["seconds, both metrics"].items()
    )
    return f"""## Lower precision

`python -m benchmarks.precision`: exact values of {
        measured["rows"]
    } GSM8K rows with the forward pass in half
precision, against float32 (two passes each: {seconds} on this CPU).

{
        table(
            (
                "",
                "Spearman",
                "top 10 %",
                "largest error / (‖G‖‖Ḡ‖)",
                "mean error of nll",
            ),
            rows,
        )
    }
"""


def noise_gate() -> str:
    measured = result("noise_gate")
    cases = {name: case for name, case in measured.items() if "fraction" in case}
    tested = list(next(iter(cases.values()))["auc by recipe"])
    told = [
        [
            name,
            f"{case['auc, mix']:.4f}",
            *(f"{case['auc by recipe'][recipe]:.3f}" for recipe in tested),
            f"{case['clean share of the top 10 %']:.3f}",
            *(
                f"{case[kind]['hits']} of {case[kind]['trials']} (≤ {case[kind]['upper bound']:.1%})"
                for kind in ("false blocks", "missed blocks")
            ),
        ]
        for name, case in cases.items()
    ]
    levels = list(next(iter(cases.values()))["fraction"])
    fractions = [
        [
            name,
            case["fraction"][levels[0]]["trials"],
            *(
                f"{one['mean absolute error']:.3f} ({one['bias']:+.3f}); {one['coverage']:.2f}; "
                f"{one['mean width']:.3f}"
                for one in case["fraction"].values()
            ),
        ]
        for name, case in cases.items()
    ]
    shifts = [
        [f"{name.removeprefix('shift against ')}: {what}", one["mean auc"], one["called shifted"]]
        for name, case in measured.items()
        if name.startswith("shift")
        for what, one in case.items()
    ]
    extra = result("noise_unconditional") if (RESULTS / "noise_unconditional.json").exists() else {}
    second = (
        f"""
A second pass over the responses alone (`python -m benchmarks.noise_unconditional`; two more
statistics: the likelihood without the prompt, and its ratio to that with it), {extra["draws"]} draws of
{extra["validation rows"]} validation rows, four recipes fitted: AUC {extra["auc"]["one pass"]} with one
pass, {extra["auc"]["two passes"]} with both; swapped answers {extra["swap"]["one pass"]} and
{extra["swap"]["two passes"]}. It would cost {extra["seconds, second / first pass"]:.0%} of the first pass
again, so it is not built in.
"""
        if extra
        else ""
    )
    return f"""## The noise gate

`python -m benchmarks.noise_gate`, with the tables of `python -m benchmarks.noise_pool`: GSM8K,
150 validation rows (of 250), shards of 400 rows (of 500 clean ones and 1,000 damaged by four recipes).
The probe is fitted on all eight recipes with four copies a row, or without the recipe in the first column. The table
shows: ROC-AUC of clean against damaged rows; the share of clean rows in the most trusted tenth at 40 % noise; wrong
verdicts at a limit of 15 %, which are clean shards that are blocked (false) and shards with 35 % noise that are not
blocked (missed), with the upper end of the 95 % interval.

{table(("fitted", "AUC, mix", *tested, "top 10 % clean", "false blocks", "missed blocks"), told)}

The estimated noise fraction for each true one: mean absolute error (bias); share of trials in which the 95 %
interval contains the truth; mean width of the interval.

{table(("fitted", "trials a level", *levels), fractions)}

Shift of the prompts, 40 draws each: ROC-AUC, and the share of draws recognised as shifted at the default limit.

{table(("shards", "mean AUC", "called shifted"), shifts)}
{second}"""


def selection() -> str:
    measured = result("selection")
    arms = [
        (
            one["arm"],
            f"{one['held_out_loss']:.4f}",
            f"{one['clean']:.2f}",
            f"{one['response_tokens']:.0f}",
        )
        for one in measured["test arms"]
    ]
    gains = [
        (
            one["arm"],
            one["seeds"],
            f"{one['gain']:+.4f}",
            f"{one['lower']:+.4f} to {one['upper']:+.4f}",
        )
        for one in measured["gain of the selected rows"]
    ]
    chosen = [
        (one["arm"], f"{one['held_out_loss']:.4f}", f"{one['clean']:.2f}")
        for one in measured["development"]
    ]
    return f"""## Does selection pay?

`python -m benchmarks.selection`: {measured["rows of a seed"]} short GSM8K rows a seed, 40 % of the answers
damaged, 60 validation rows, 40 held-out ones; LoRA finetunes of the embedded model on
{measured["comparison"]["rows"]} rows in {measured["comparison"]["rows"] // 2} steps, response tokens equal
within 3 %; held-out loss of the base model {measured["base held-out loss"]:.4f}. Policies on two
development seeds:

{table(("policy", "held-out loss", "clean share"), chosen)}

The best, "{measured["policy"]}", on test seeds with rows never used before, and how much lower its
held-out loss is (paired, Student's 95 % interval):

{table(("arm", "held-out loss", "clean share", "response tokens"), arms)}

{table(("against", "seeds", "gain of the selected rows", "95 % interval"), gains)}
"""


def main() -> None:
    environment = ", ".join(f"{k} {v}" for k, v in result("forward_passes")["environment"].items())
    parts = {
        "forward_passes": forward_passes,
        "large_vocabularies": large_vocabularies,
        "accelerator": accelerator,
        "slow_device": slow_device,
        "feature_fidelity": fidelity,
        "revaluation": revaluation,
        "feature_layout": layout,
        "gsm8k_noise": metric_choice,
        "peer_methods_all": peer_methods,
        "precision": precision,
        "noise_gate": noise_gate,
        "selection": selection,
        "vision_passes": vision_passes,
        "vision_tasks": vision_tasks,
        "many_shards": many_shards,
        "gate_cost": gate_cost,
        "step_overhead": step_overhead,
        "feature_store": feature_store,
        "adoption": adoption,
    }
    # A part that was not measured for this release is left out.
    sections = [part() for name, part in parts.items() if (RESULTS / f"{name}.json").exists()]
    intro = f"""# Benchmarks

Rendered from `benchmarks/results/` by `python -m benchmarks.report`; `make bench` runs everything.
Model: SmolLM2-135M-Instruct, float32. Machine: {environment}. The data (GSM8K, the DataInf task) do not
come with the project.
"""
    PAGE.write_text("\n".join([intro, summary(), *sections]), "utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
