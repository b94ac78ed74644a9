"""What every benchmark shares: the environment, shared data, interleaved timing, peak memory."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("FORVALUE_SHARED_DATA", "../shared/data")),
        help="folder with gsm8k/ and datainf/",
    )
    return parser


def need(path: Path) -> Path:
    """Return `path`, or stop: the data do not come with the project."""
    if not path.exists():
        raise SystemExit(f"{path} is absent: this benchmark needs it. Give its folder as --data.")
    return path


def environment() -> dict[str, Any]:
    packages = ("torch", "transformers", "polars", "numpy")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
    } | {name: version(name) for name in packages}


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def interleaved_seconds(
    passes: dict[str, Callable[[Any], object]], batches: Sequence[Any], repeats: int
) -> dict[str, list[float]]:
    """Time passes over the same batches, taking turns batch by batch, so that drift hits all."""
    for run in passes.values():
        run(batches[0])  # warm up
    totals: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats):
        spent = dict.fromkeys(passes, 0.0)
        for batch in batches:
            for name, run in passes.items():
                start = time.perf_counter()
                run(batch)
                spent[name] += time.perf_counter() - start
        for name, seconds in spent.items():
            totals[name].append(seconds)
        print(
            f"repeat {repeat + 1}: " + ", ".join(f"{n} {s:.2f} s" for n, s in spent.items()),
            flush=True,
        )
    return totals


def medians(totals: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in totals.items()}


def peak_megabytes() -> float:
    """Peak resident memory of this process since its program began (Linux).

    (`getrusage` would also count what the parent held when it started this process.)
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise SystemExit("This system does not tell a process's peak memory.")


def reset_peak() -> None:
    """Begin to measure the peak anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result beside the environment it was measured in."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment()} | result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"written to {path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else path)
