"""The first table of docs/benchmarks.md: one line for each thing that was measured."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.rendering import result, table

Row = tuple[str, str, str]


def summary() -> str:
    parts = {
        "forward_passes": _passes,
        "accelerator": _accelerator,
        "forward_passes_memory": _memory,
        "feature_fidelity": _fidelity,
        "revaluation": _revaluation,
        "many_shards": _many_shards,
        "step_overhead": _step,
        "datainf_task_all": _kinds,
        "gsm8k_noise": _metrics,
        "noise_gate": _gate,
        "selection": _selection,
        "vision_tasks": _images,
        "vision_passes": _image_passes,
        "peer_methods_response": _peers,
    }
    rows = [
        row for name, part in parts.items() if (RESULTS / f"{name}.json").exists() for row in part()
    ]
    return f"""## In short

"×" is a ratio of times: the pass named first against a plain pass (`model(...).logits`) over the same batches, where
nothing else is said. AUC: 0.5 is guessing, 1 is a perfect order.

{table(("what", "measured", "command"), rows)}
"""


def _command(name: str) -> str:
    return f"`python -m benchmarks.{name}`"


def _passes() -> list[Row]:
    measured = result("forward_passes")
    exact = f"{measured['exact / plain']:.2f} ×; {measured['exact, 8 groups / plain']:.2f} ×"
    command = _command("forward_passes")
    return [
        (
            f"feature pass (all statistics and token features) over {measured['rows']} rows of GSM8K",
            f"{measured['features / plain']:.2f} ×",
            command,
        ),
        ("exact pass (value, alignment, all statistics), one group; eight groups", exact, command),
    ]


def _accelerator() -> list[Row]:
    measured = result("accelerator")
    names = ("Llama-3.1-8B", "Qwen2.5-1.5B")
    ratios = [measured["models"][name]["ratios"] for name in names]
    figures = (
        ", ".join(f"{one[f'{kind} / plain']:.2f} ×" for one in ratios)
        for kind in ("features", "exact")
    )
    what = (
        f"the same on one {measured['card']}, bfloat16, random weights in the shapes of "
        f"{' and '.join(names)}: features; exact"
    )
    return [(what, "; ".join(figures), _command("accelerator"))]


def _memory() -> list[Row]:
    peak = result("forward_passes_memory")["peak_megabytes"]
    added = f"{peak['exact 96'] - peak['plain 96']:+.0f} MB"
    what = "peak memory of the exact pass, compared with the plain pass"
    return [(what, added, "`python -m benchmarks.forward_passes --memory`")]


def _fidelity() -> list[Row]:
    forms = [
        metric
        for data in result("feature_fidelity")["fidelity"].values()
        for metric in data["top 16, int8"].values()
    ]
    what = (
        f"values from stored features ({forms[0]['bytes']} bytes a token) against exact values, plain and "
        "preconditioned, two data sets: lowest Spearman correlation; lowest overlap of the top 10 %"
    )
    spearman, overlap = (min(form[key] for form in forms) for key in ("spearman", "top_overlap"))
    return [(what, f"{spearman:.4f}; {overlap:.2f}", _command("feature_fidelity"))]


def _revaluation() -> list[Row]:
    measured = result("revaluation")
    seconds = "; ".join(
        f"{measured['results'][f'100000 rows, {groups} group(s)']['seconds']:.0f} s"
        for groups in (1, 8)
    )
    what = (
        f"valuing 100,000 stored rows of {measured['tokens a row']} tokens against a new profile, "
        "one group; eight groups"
    )
    return [(what, seconds, _command("revaluation"))]


def _many_shards() -> list[Row]:
    measured = result("many_shards")
    whole = measured["revalue"]["all"]
    what = (
        f"a new validation set over {measured['shards']:,} shards of {measured['rows']} rows (scores, checks, "
        "dataset, gate): time, peak memory; passes over training rows"
    )
    figures = f"{whole['seconds']:.0f} s, {whole['peak_megabytes'] / 1000:.1f} GB; 0"
    return [(what, figures, _command("many_shards"))]


def _step() -> list[Row]:
    measured = result("step_overhead")
    what = (
        f"the feature step of a shard of {measured['rows']} rows in Dagster (storage and events included) "
        "against the plain function on the same rows"
    )
    return [(what, f"{measured['step / function']:.2f} ×", _command("step_overhead"))]


def _kinds() -> list[Row]:
    task = result("datainf_task_all")
    rows = " × ".join(str(count) for count in task["rows"])
    figures = "; ".join(
        f"{task['results'][name]['auc']:.4f} / {task['results'][name]['recall']:.3f}"
        for name in ("plain, exact", "preconditioned, damping 0.1, exact")
    )
    what = (
        "finding the training rows of the same kind as a validation row "
        f"({rows} rows), AUC / recall: plain; preconditioned"
    )
    return [(what, figures, _command("datainf_task"))]


def _metrics() -> list[Row]:
    measured = result("gsm8k_noise")
    by: dict[str, Any] = measured["results by warm-up"]["none"]
    damped = "preconditioned, damping 0.1"
    figures = "; ".join(
        f"{by[metric][score]['clean_in_top_10']:.2f}"
        for metric, score in (("plain", "value"), (damped, "value"), (damped, "alignment"))
    )
    what = (
        f"clean rows among the top 10 % of GSM8K with {1 - measured['clean share']:.0%} noise (a random choice: "
        f"{measured['clean share']:.2f}): plain value; preconditioned value; preconditioned alignment"
    )
    return [(what, figures, _command("gsm8k_noise"))]


def _gate() -> list[Row]:
    gate = result("noise_gate")
    fitted = gate["recipes fitted"]
    left = [case for name, case in gate.items() if name.startswith("without")]

    def worst(cases: list[dict[str, Any]]) -> float:
        return max(
            level["mean absolute error"] for case in cases for level in case["fraction"].values()
        )

    mean = sum(case["auc, mix"] for case in left) / len(left)
    command = "`python -m benchmarks.noise_pool`, then `noise_gate`"
    return [
        (
            "noise probe on GSM8K (150 validation rows), clean against damaged rows, AUC: all kinds of damage "
            "fitted; one kind left out, mean",
            f"{fitted['auc, mix']:.3f}; {mean:.3f}",
            command,
        ),
        (
            "noise fraction of shards of 400 rows, largest mean absolute error over 0 to 60 % noise: the same "
            "two cases",
            f"{worst([fitted]):.3f}; {worst(left):.3f}",
            command,
        ),
    ]


def _selection() -> list[Row]:
    (gain,) = (
        one for one in result("selection")["gain of the selected rows"] if one["arm"] == "random"
    )
    what = (
        "finetunes at 40 % noise, equal steps and tokens: how much lower the held-out loss of the selected rows "
        "is than that of random rows, nats a token (95 % interval)"
    )
    figures = f"{gain['gain']:.3f} ({gain['lower']:.3f} to {gain['upper']:.3f})"
    return [(what, figures, _command("selection"))]


def _images() -> list[Row]:
    images = result("vision_tasks")
    flipped = images["mislabelled, 50% flipped"]
    labels = (
        f"{flipped['noise probability']['auc']:.4f}; {flipped['value']['auc']:.3f}; "
        f"{flipped['value, plain, per class of the image']['auc']:.3f}"
    )
    found = "; ".join(
        f"{images[what]['alignment, plain']['auc']:.3f}, {images[what]['value, plain']['auc']:.3f}"
        for what in ("subject", "style")
    )
    command = _command("vision_tasks")
    return [
        (
            "images (digits that the model never saw), 50 % wrong labels, AUC: noise probability; value; value "
            "among images of a class",
            labels,
            command,
        ),
        (
            "images, finding the training rows of a validation row's subject; of its style, AUC: alignment, value",
            found,
            command,
        ),
    ]


def _image_passes() -> list[Row]:
    seen = result("vision_passes")
    figures = f"{seen['features / plain']:.2f} ×; {seen['exact / plain']:.2f} ×"
    return [("passes over rows with images: features; exact", figures, _command("vision_passes"))]


def _peers() -> list[Row]:
    ratio = result("peer_methods_response")["median seconds / exact For-Value"]
    what = "Hessian-free influence from LoRA gradients against exact For-Value, the same batches"
    figures = f"{ratio['Hessian-free, LoRA gradients']:.1f} ×"
    return [(what, figures, "`python -m benchmarks.peer_methods --tokens response`")]
