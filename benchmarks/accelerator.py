"""The pass on a GPU, beside a plain pass and beside gradients of a LoRA; on a CPU, a smoke test.

    python -m benchmarks.accelerator                      # all three models: within eight minutes
    python -m benchmarks.accelerator --models Qwen2.5-1.5B

Needs torch, transformers, polars, numpy and this package; no Dagster, no network. Models have real
shapes and random weights, rows the lengths of GSM8K's. All passes take the same batches, in turns;
times are those between device events, medians over repeats. Baseline "plain":
`model(input_ids, attention_mask, use_cache=False).logits` in inference mode.

- "features": all forward statistics and token features, brought to the host.
- "exact": value, alignment and all forward statistics; with one validation group, and with eight.
- "Hessian-free", "DataInf": gradients of a LoRA at its start for each row (`benchmarks.peers`) and
  their influence on the validation rows' mean; each batch as large as runs fastest of those that
  fit.
- "idle": share of a whole run's time in which the device did nothing, encoding and Parquet
  included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import peers
from benchmarks.accelerator_models import CONFIGURATIONS, loaded_model, rows
from benchmarks.harness import RESULTS, environment
from forvalue_dagster.data.batching import Batch, batches
from forvalue_dagster.data.chat import EncodedRow
from forvalue_dagster.engine.encoding import encode_rows
from forvalue_dagster.engine.features import feature_head, feature_parts
from forvalue_dagster.engine.forward import pass_batch
from forvalue_dagster.engine.memory import TokenBudget
from forvalue_dagster.engine.scoring import build_profile, exact_head
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.positions import to_device
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile import ValueDirection

OPTIONS = ValuationOptions(noise=None)
VALIDATION_ROWS = 32
REPEATS = 3


class Clock:
    """Milliseconds between two moments, of the device where there is one."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def time(self, run: Callable[[], object]) -> float:
        if not self._cuda:
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


@torch.inference_mode()
def plain(loaded: LoadedModel, batch: Batch) -> object:
    device = loaded.device
    return loaded.model(
        input_ids=to_device(batch.input_ids, device),
        attention_mask=to_device(batch.attention_mask, device),
        use_cache=False,
    ).logits


def features(loaded: LoadedModel, batch: Batch) -> object:
    return feature_head(loaded, OPTIONS, pass_batch(loaded, batch))


def exact(loaded: LoadedModel, direction: ValueDirection, batch: Batch) -> object:
    return exact_head(loaded, direction, None, pass_batch(loaded, batch))


def direction_of(loaded: LoadedModel, groups: int) -> ValueDirection:
    names = [f"group {row % groups}" for row in range(VALIDATION_ROWS)]
    frame = rows(VALIDATION_ROWS, seed=7).with_columns(group=pl.Series(names))
    built, _ = build_profile(loaded, frame, OPTIONS)
    return built.direction(Preconditioner(), overwrite=True)


def padded(loaded: LoadedModel, frame: pl.DataFrame, budget: int) -> list[Batch]:
    encoded = encode_rows(loaded.encoder("response"), frame)
    return list(batches([row for row in encoded if isinstance(row, EncodedRow)], budget))


def measure(
    name: str, device: torch.device, count: int, run_rows: int, save: Callable[[Any], None]
) -> dict[str, Any]:
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    loaded, clock = loaded_model(name, device, half), Clock(device)
    budget = TokenBudget.of(loaded, OPTIONS).tokens
    made = padded(loaded, rows(count), budget)
    tokens = int(sum(batch.attention_mask.sum() for batch in made))
    scored = int(sum(batch.mask.sum() for batch in made))
    slots = sum(batch.input_ids.size for batch in made)
    result: dict[str, Any] = {
        "rows": count,
        "batch_tokens": budget,
        "batches": len(made),
        "tokens": tokens,
        "response_tokens": scored,
        "padding_share": round(1 - tokens / slots, 4),
        "positions_at_once": loaded.unembedding.sweep.positions(
            loaded.unembedding.vocabulary_size, torch.float32
        ),
    }
    passes: dict[str, Callable[[Batch], object]] = {
        "plain": partial(plain, loaded),
        "features": partial(features, loaded),
        "exact": partial(exact, loaded, direction_of(loaded, 1)),
    }
    result |= in_turns(passes, made, clock, loaded)
    save(result)
    result["idle"] = idle_share(loaded, rows(run_rows, seed=3))
    save(result)
    result["gradients"] = gradients(loaded, count, clock, result)
    save(result)
    passes = {"plain": passes["plain"]}
    try:
        passes["exact, 8 groups"] = partial(exact, loaded, direction_of(loaded, 8))
        result["eight groups"] = in_turns(passes, made[-3:], clock, loaded, repeats=1)
    except torch.OutOfMemoryError:
        result["eight groups"] = "not measured: the directions do not fit beside the model"
    save(result)
    return result


def in_turns(
    passes: dict[str, Callable[[Batch], object]],
    made: Sequence[Batch],
    clock: Clock,
    loaded: LoadedModel,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Time passes over the same batches, batch by batch in turns."""
    device, peak, kernels = loaded.device, {}, {}
    for name, run in passes.items():
        run(made[-1])  # the longest rows
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            run(made[-1])
            torch.cuda.synchronize()
            peak[name] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            kernels[name] = count_kernels(run, made[-1])
    totals: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        spent = dict.fromkeys(passes, 0.0)
        for batch in made:
            for name, run in passes.items():
                spent[name] += clock.time(partial(run, batch))
        for name, milliseconds in spent.items():
            totals[name].append(milliseconds)
    middle = {name: float(np.median(each)) for name, each in totals.items()}
    tokens = int(sum(batch.attention_mask.sum() for batch in made))
    found: dict[str, Any] = {
        "milliseconds": {name: round(ms, 1) for name, ms in middle.items()},
        "tokens a second": {name: round(1e3 * tokens / ms) for name, ms in middle.items()},
        "ratios": {
            f"{name} / plain": round(ms / middle["plain"], 3)
            for name, ms in middle.items()
            if name != "plain"
        },
        "peak_gib": peak,
        "kernels a batch": kernels,
    }
    if "features" in passes:
        body, head = operations(loaded, made)
        found["teraflops"] = {
            "plain": round(1e-9 * (body + head[0]) / middle["plain"], 1),
            "features": round(1e-9 * (body + head[1]) / middle["features"], 1),
        }
    return found


def operations(loaded: LoadedModel, made: Sequence[Batch]) -> tuple[float, tuple[float, float]]:
    """Multiplications and additions of tokens that are no padding: (layers, head at all | scored).

    Attention scores are left out: below one per cent at these lengths.
    """
    weight = loaded.unembedding.weight
    embedding = loaded.model.get_input_embeddings().weight
    total = sum(p.numel() for p in loaded.model.parameters())
    layers = total - embedding.numel() - (0 if embedding is weight else weight.numel())
    if embedding.data_ptr() == weight.data_ptr():
        layers = total - weight.numel()
    tokens = sum(float(batch.attention_mask.sum()) for batch in made)
    scored = sum(float(batch.mask.sum()) for batch in made)
    return 2 * layers * tokens, (2 * weight.numel() * tokens, 2 * weight.numel() * scored)


def count_kernels(run: Callable[[Batch], object], batch: Batch) -> int:
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run(batch)
        torch.cuda.synchronize()
    return len(device_spans(seen))


def device_spans(seen: profile) -> list[tuple[int, int]]:
    """Return when the device began and ended each piece of work, nanoseconds, in order."""
    return sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in seen.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    )


class Folder:
    """Finished parts as Parquet files, as the graph keeps them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, key: str) -> bool:
        return False

    def load(self, key: str) -> None:
        return None

    def save(self, key: str, part: pl.DataFrame, budget: str) -> None:
        part.write_parquet(self._folder / f"{key}.parquet", compression="zstd")


def idle_share(loaded: LoadedModel, frame: pl.DataFrame) -> dict[str, float]:
    """Run the feature pass from rows to Parquet, and see when the device worked."""

    def run() -> float:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for _ in feature_parts(loaded, frame, OPTIONS, store=Folder(Path(folder))):
                pass
        return time.perf_counter() - start

    start = time.perf_counter()
    for _ in encode_rows(loaded.encoder("response"), frame):
        pass
    encoding = time.perf_counter() - start
    if loaded.device.type != "cuda":
        return {"seconds": run()}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        wall = run()
    busy, until = 0, 0
    for begin, end in device_spans(seen):
        busy += max(0, end - max(begin, until))
        until = max(until, end)
    return {
        "rows": len(frame),
        "seconds": round(wall, 2),
        "busy seconds": round(busy / 1e9, 2),
        "idle share": round(1 - busy / 1e9 / wall, 3),
        "encoding alone, seconds": round(encoding, 2),
    }


def gradients(
    loaded: LoadedModel, count: int, clock: Clock, shape: dict[str, Any]
) -> dict[str, Any]:
    """Time gradients of a LoRA, at the fastest batch size that fits, and what follows."""
    some = rows(min(count, 128))
    trusted = padded(loaded, rows(VALIDATION_ROWS, seed=7), 2048)
    best: tuple[float, int] | None = None
    for budget in (2048, 4096, 8192):
        made = padded(loaded, some, budget)
        try:
            run = partial(peers.lora_gradients, loaded, made)
            run()
            spent = clock.time(run)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if best is None or spent < best[0]:
            best = spent, budget
    if best is None:
        return {"not measured": "no batch fits"}
    made = padded(loaded, some, best[1])
    sides = [peers.lora_gradients(loaded, side) for side in (made, trusted)]
    extra = {
        "Hessian-free": clock.time(lambda: peers.hessian_free(*sides)),
        "DataInf": clock.time(lambda: peers.datainf(*sides)),
    }
    tokens = int(sum(batch.attention_mask.sum() for batch in made))
    exact_ms = shape["milliseconds"]["exact"] / shape["tokens"]
    return {
        "rows": len(some),
        "batch_tokens": best[1],
        "tokens a second": {n: round(1e3 * tokens / (best[0] + ms)) for n, ms in extra.items()},
        "time a token / exact": {
            n: round((best[0] + ms) / tokens / exact_ms, 2) for n, ms in extra.items()
        },
    }


def peak_teraflops(device: torch.device) -> float | None:
    """Return the rate of a large bfloat16 product on random data."""
    if device.type != "cuda":
        return None
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock = Clock(device)
    clock.time(lambda: a @ b)
    spent = np.median([clock.time(lambda: a @ b) for _ in range(10)])
    return round(2 * 8192**3 / spent / 1e9)


def table(results: dict[str, Any], peak: float | None) -> str:
    lines = ["model | features / plain | exact / plain | 8 groups | idle | TFLOP/s | HF, DataInf"]
    for name, found in results.items():
        eight, ratios, rate = found["eight groups"], found["ratios"], found["teraflops"]
        eight = eight if isinstance(eight, str) else eight["ratios"]["exact, 8 groups / plain"]
        lines.append(
            f"{name} | {ratios['features / plain']} | {ratios['exact / plain']} | {eight} "
            f"| {found['idle'].get('idle share')} | {rate['features']} of {peak} "
            f"| {found['gradients'].get('time a token / exact')}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cuda = torch.cuda.is_available()
    names = ["Qwen2.5-0.5B", "Qwen2.5-1.5B", "Llama-3.1-8B"] if cuda else ["tiny"]
    parser.add_argument("--models", nargs="+", default=names, choices=list(CONFIGURATIONS))
    parser.add_argument("--rows", type=int, default=1024 if cuda else 24)
    parser.add_argument("--run-rows", type=int, default=2000 if cuda else 40)
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "accelerator.json" if cuda else None
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    card = torch.cuda.get_device_name() if cuda else "no card: a smoke test"
    peak = peak_teraflops(device)
    results: dict[str, Any] = {}
    start = time.perf_counter()
    for name in arguments.models:
        # A large model takes as long for fewer rows.
        count = arguments.rows // 3 if "8B" in name else arguments.rows

        def save(found: dict[str, Any], name: str = name) -> None:
            results[name] = found
            print(f"{time.perf_counter() - start:.0f} s: {name} {json.dumps(found)}", flush=True)
            if arguments.output is not None:
                result = {"card": card, "bfloat16 peak, measured, teraflops": peak}
                result = {"environment": environment()} | result | {"models": results}
                arguments.output.write_text(json.dumps(result, indent=2) + "\n")

        measure(name, device, count, arguments.run_rows, save)
        if cuda:
            torch.cuda.empty_cache()
    print(card)
    print(table(results, peak))


if __name__ == "__main__":
    main()
