"""The part of docs/benchmarks.md on GPUs, and on the large vocabularies of today's models."""

from __future__ import annotations

from benchmarks.rendering import result, table


def large_vocabularies() -> str:
    measured = result("large_vocabularies")
    rows = [
        (
            name,
            f"{one['vocabulary']:,}",
            one["width"],
            f"{one['features / plain']:.2f}",
            f"{one['exact / plain']:.2f}",
        )
        for name, one in measured["shapes"].items()
    ]
    return f"""## Large vocabularies, on a CPU

`python -m benchmarks.large_vocabularies`: 24 rows of GSM8K's lengths, two thirds of the tokens in responses;
random weights in the shapes of models of today, float32; the same batches in turns. Ratios to a plain pass
depend on the shape of the head:

{table(("shape", "vocabulary", "width", "features / plain", "exact / plain"), rows)}
"""


def accelerator() -> str:
    measured = result("accelerator")
    passes, others = [], []
    for name, one in measured["models"].items():
        ratios, idle, gradients = one["ratios"], one["idle"], one.get("gradients", {})
        eight = one.get("eight groups", {}).get("ratios", {}).get("exact, 8 groups / plain")
        slower = gradients.get("time a token / exact", {})
        passes.append(
            (
                name,
                f"{one['tokens a second']['features']:,}",
                f"{ratios['features / plain']:.2f}",
                f"{ratios['exact / plain']:.2f}",
                "not measured" if eight is None else f"{eight:.2f}",
                f"{one['teraflops']['features']:.0f}",
                f"{one['kernels a batch']['features'] - one['kernels a batch']['plain']}",
            )
        )
        others.append(
            (
                name,
                f"{idle['seconds']:.1f} s, {idle['busy seconds']:.1f} s",
                f"{100 * idle['idle share']:.0f} %",
                *(
                    f"{slower[m]:.1f} ×" if m in slower else "–"
                    for m in ("Hessian-free", "DataInf")
                ),
            )
        )
    header = (
        *("shape", "features, tokens a second", "features / plain", "exact / plain"),
        *("eight groups / plain", "TFLOP/s", "kernels of features"),
    )
    peak = measured["bfloat16 peak, measured, teraflops"]
    ((unwatched, run),) = measured["runs without a profiler"].items()
    busy = measured["models"][unwatched]["idle"]["busy seconds"]
    return f"""## On a GPU

`python -m benchmarks.accelerator` on one {measured["card"]}: random weights in real shapes, bfloat16, rows of
GSM8K's lengths, batches of 16,384 tokens, all passes on the same batches in turns. A large bfloat16 product ran
at {peak} TFLOP/s on that card; TFLOP/s below count the tokens that are no padding. "Kernels of features" are
those beyond the plain pass.

{table(header, passes)}

A whole feature pass over 2,000 rows, encoding and Parquet included, while a profiler looked on: its time and the
time that the device was busy. Then the time a token of gradients of a LoRA and their influence, each at its
fastest batch size, against the exact pass:

{table(("shape", "run, device busy", "idle", "Hessian-free / exact", "DataInf / exact"), others)}

Without the profiler the run of {unwatched} took {run["seconds"]:.1f} s, for {busy:.1f} s of the device: what is
left is the first window's encoding, the last part's Parquet and the wait for each batch's attention mask. Three goals were
missed: an exact pass of at most 1.20 × plain below 8B (every product with the direction is three of half
precision, and small models have large heads), an idle share of at most 10 %, and gradients of a LoRA being three
times as slow: at their start they take one forward pass and one backward pass without gradients of weights,
so about twice.
"""


def slow_device() -> str:
    measured = result("slow_device")
    return f"""## What hides behind a device

`python -m benchmarks.slow_device`: a model that sleeps 20 ms for each batch of 16 rows stands for a GPU;
{measured["batches"]} batches, encoding, records and Parquet included: **{measured["time / (batches × 20 ms)"]:.2f}
×** the device's own time.
"""
