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
random weights in the shapes of current models, float32; the same batches in turns. Ratios to a plain pass
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
at {peak} TFLOP/s on that card. TFLOP/s in the table do not count padding. "Kernels of features" are
the kernels beyond those of the plain pass.

{table(header, passes)}

The next table shows a whole feature pass over 2,000 rows, with encoding and Parquet, under a profiler: its time, and
the time that the GPU was busy. The last two columns compare the gradients of a LoRA and their influence with the exact
pass, by time a token, each at its fastest batch size:

{table(("shape", "run, device busy", "idle", "Hessian-free / exact", "DataInf / exact"), others)}

Without the profiler, the run of {unwatched} took {run["seconds"]:.1f} s, and the GPU was busy for {busy:.1f} s of
them. The rest is the encoding of the first window, the Parquet of the last part, and the wait for the attention mask
of each batch.

Three goals were missed:

- An exact pass of at most 1.20 × plain, below 8B. Every product with the direction is three products of half
  precision, and small models have large heads.
- An idle share of at most 10 %.
- LoRA gradients that are three times as slow. An untrained LoRA takes one forward pass and one backward pass without
  gradients of weights, which is about twice the time.
"""


def slow_device() -> str:
    measured = result("slow_device")
    return f"""## Work that hides behind the GPU

`python -m benchmarks.slow_device`: a model that sleeps 20 ms for each batch of 16 rows stands for a GPU;
{measured["batches"]} batches, with encoding, records and Parquet: **{measured["without the head"]:.2f} ×** the time of
the device alone, the head aside, which a GPU computes and here the processor does
({measured["time / (batches × 20 ms)"]:.2f} × with it).
"""
