"""The part of docs/benchmarks.md on rows with images."""

from __future__ import annotations

from benchmarks.harness import medians
from benchmarks.rendering import result, table

_ORDER = (
    "value",
    "alignment",
    "noise probability",
    "NLL",
    "value, plain",
    "value, preconditioned",
    "embedding similarity",
    "Hessian-free, projector",
)


def vision_passes() -> str:
    measured = result("vision_passes")
    middle = medians(measured["seconds"])
    rows = [(n, f"{s:.1f} s", f"{s / middle['plain']:.3f}") for n, s in middle.items()]
    photographs = measured["photographs"]
    return f"""## Rows with images

Model: the digit reader (`assets/digit_reader`), LLaVA over SmolLM2-135M-Instruct; its own accuracy on 200
images that it was not trained on: {_accuracy()}.

`python -m benchmarks.vision_passes`: {measured["rows"]} rows ({measured["tokens"]:,} tokens,
{measured["response_tokens"]:,} of them in responses), the same batches for every pass, in turns.

{table(("pass", "median", "/ plain"), rows)}

{photographs["count"]} photographs of 1,600 × 1,200 pixels: if two threads prepare them ahead, on the same two cores as
the model, a pass takes {photographs["ahead / when needed"]:.2f} × the time of a pass that prepares each image when it is
needed.
"""


def _accuracy() -> str:
    found = result("vision_tasks")["accuracy of the model"]
    return "; ".join(f"{question} {share:.1%}" for question, share in found.items())


def vision_tasks() -> str:
    measured = result("vision_tasks")
    train, trusted = measured["rows"]
    flipped = {name: found for name, found in measured.items() if name.startswith("mislabelled")}
    identified = {
        name: measured[name] for name in ("subject", "subject, asked for parity", "style")
    }
    return f"""### What is found among them

`python -m benchmarks.vision_tasks`: {train} training rows and {trusted} validation rows about images that
the model was not trained on. AUC / recall. Wrong labels ({measured["seeds"]} seed(s)). "Per class" is the mean
over classes: the rows whose image, or whose label, is of the class are valued by the validation rows of that class.

{_lines(flipped)}

Which training rows have the same digit or style as a validation row (mean over validation rows). "Asked for parity"
means that the answers are even and odd: they do not name the digit, so only the image shows it.

{_lines(identified)}

Published with Llama-3.2-11B-Vision on other data (arXiv 2508.10180): subject .995 / .985, style .974 / .997,
50 % flipped labels .995 / 1.0.
"""


def _lines(results: dict[str, dict[str, dict[str, float]]]) -> str:
    methods = list(next(iter(results.values())))
    methods.sort(key=lambda name: [name.startswith(one) for one in _ORDER].index(True))
    rows = [
        (
            method,
            *(
                f"{one[method]['auc']:.4f} / {one[method]['recall']:.3f}"
                for one in results.values()
            ),
        )
        for method in methods
    ]
    return table(("", *results), rows)
