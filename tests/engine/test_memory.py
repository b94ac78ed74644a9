"""Memory that runs out, for real: allocations fail under a limit of the operating system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forvalue_dagster.engine.memory import TokenBudget, is_out_of_memory

ROOT = Path(__file__).parents[2]

# Both passes in a process of its own, so that the limit hits nobody else. 60 rows of 400 tokens:
# attention weights of one batch of all of them alone need 154 MB.
SCRIPT = """
import logging, resource, sys
import torch
import forvalue_dagster as fv
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.options.valuation import ValuationOptions
from tests.tiny import tiny_model, byte_tokenizer
from forvalue_dagster.models.loading import prepare_model
import polars as pl
logging.basicConfig(level=logging.WARNING)
torch.set_num_threads(1)
model = tiny_model("llama", torch.float32)
model.config._attn_implementation = "eager"
loaded = prepare_model(model, byte_tokenizer())
rows = fv.read_rows([
    {"prompt": str(i) + "p" * 300, "response": "r" * (60 + i % 5)} for i in range(60)])
options = ValuationOptions(batch_tokens=2000, window_rows=30)
# With no room at all the heap must be fresh, or freed blocks would serve.
small = pl.concat(feature_parts(loaded, rows, options)) if sys.argv[1] != "0" else None
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
headroom = int(sys.argv[1]) * 2**20
options = ValuationOptions(
    batch_tokens=100_000, window_rows=30, memory_limit_gb=(used + headroom) / 1e9)
table = pl.concat(feature_parts(loaded, rows, options))
print(table["status"].value_counts().sort("status").rows(), table["reason"].unique().to_list())
if small is not None:
    print("difference", (table["nll"] - small["nll"]).abs().max())
print("limit lifted", resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY)
"""


def run(headroom_megabytes: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(headroom_megabytes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


def test_batches_are_halved_until_they_fit() -> None:
    done = run(60)
    assert "[('scored', 60)]" in done.stdout
    assert float(done.stdout.split("difference")[1].split()[0]) < 1e-4
    assert "limit lifted True" in done.stdout
    warnings = [line for line in done.stderr.splitlines() if "did not fit in memory" in line]
    # The lower budget stays in force: the second window does not begin from the top again.
    assert 1 <= len(warnings) <= 6


def test_a_row_that_does_not_fit_alone_is_skipped_with_the_reason() -> None:
    done = run(0)
    assert "('skipped', " in done.stdout
    assert "out_of_memory" in done.stdout


def test_the_budget_falls_to_one_and_no_further() -> None:
    budget = TokenBudget(100)
    budget.halve(7)
    assert budget.tokens == 3
    budget.halve(1)
    assert budget.tokens == 1


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("shapes do not match")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
