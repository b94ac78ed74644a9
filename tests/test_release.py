"""What is released: built, installed as people install it, on all that `pyproject.toml` admits.

`make release` runs it: it downloads gigabytes. Each line of `MATRIX` is an environment without
this checkout; an interpreter that is not on this machine is skipped by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)
# Python, Dagster and the integrations' release of the same day, polars.
MATRIX = [
    ("3.11", "1.13.0", "0.29.0", "1.30.0"),
    ("3.11", "1.13.0", "0.29.0", PINS["polars"]),
    ("3.11", PINS["dagster"], PINS["dagster-aws"], "1.30.0"),
    ("3.11", PINS["dagster"], PINS["dagster-aws"], PINS["polars"]),
    ("3.12", PINS["dagster"], PINS["dagster-aws"], PINS["polars"]),
    ("3.13", PINS["dagster"], PINS["dagster-aws"], PINS["polars"]),
]
# What Dagster and polars could break: reading, storing, the graph, the gate, the component.
TESTED = [
    "tests/data/test_read.py",
    "tests/engine/test_selection.py",
    "tests/orchestration/test_checks.py",
    "tests/orchestration/test_component.py",
    "tests/orchestration/test_gate.py",
    "tests/orchestration/test_graph.py",
    "tests/orchestration/test_report.py",
    "tests/orchestration/test_reruns.py",
    "tests/orchestration/test_sensor.py",
    "tests/storage/test_io_managers.py",
]
CONSUMER = """\
import dagster as dg
import forvalue_dagster as fv
import polars as pl

defs: dg.Definitions = fv.valuation_definitions(
    training_rows=fv.RowSource(path="train"),
    validation_rows=fv.RowSource(path="validation.jsonl"),
    storage=fv.Storage(base_dir="store"),
    gate=fv.GatePolicy(max_noise_fraction=0.1),
    warm_up=fv.WarmUp(rank=8),
)
rows: pl.DataFrame = fv.read_rows([{"prompt": "1 + 1", "response": "2"}])
chosen: pl.DataFrame = fv.select_rows(fv.value_dataset(rows, rows), fv.Selection(keep_count=1))
"""
WRONG = CONSUMER + 'fv.valuation_definitions(training_rows=7)\nfv.Selection(by="luck")\n'

pytestmark = pytest.mark.release


def run(*command: str | Path, cwd: Path, fails: bool = False, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, said[-4000:]
    return said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution, not from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "-o", folder, ROOT, cwd=folder)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (built,) = folder.glob("*.whl")
    return built


def install(python: str, folder: Path, wheel: Path, pins: Sequence[str]) -> Path:
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    pip = (folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet")
    # On its own: in a range, the index's newest build would come.
    run(*pip, f"torch=={PINS['torch']}", cwd=folder)
    run(*pip, f"{wheel}[demo]", *pins, cwd=folder)
    return folder / "venv" / "bin"


@pytest.mark.parametrize(
    ("python", "dagster", "integrations", "polars"), MATRIX, ids=lambda version: str(version)
)
def test_it_installs_and_works(
    python: str, dagster: str, integrations: str, polars: str, wheel: Path, tmp_path: Path
) -> None:
    interpreter = f"python{python}"
    # A shim of a version manager may be there for what is not.
    if subprocess.run(["sh", "-c", f"{interpreter} --version"], check=False).returncode:
        pytest.skip(f"{interpreter} is not on this machine.")
    pins = [
        *(f"{name}=={dagster}" for name in ("dagster", "dagster-webserver", "dagster-dg-cli")),
        *(f"dagster-aws=={integrations}", f"polars=={polars}"),
    ]
    try:
        tools = install(interpreter, tmp_path, wheel, pins)
        assert_usable(tools, tmp_path)
        # Only now what the tests need beside; nothing of the above may move.
        extras = ("pytest", "pytest-xdist", "hypothesis", "moto[server]", "s3fs", "zstandard")
        extras = (*extras, f"create-dagster=={dagster}", "datasets")
        run(tools / "python", "-m", "pip", "install", "--quiet", *extras, *pins, cwd=tmp_path)
        assert_tests_pass(tools, tmp_path)
    finally:
        shutil.rmtree(tmp_path / "venv", ignore_errors=True)


def assert_usable(tools: Path, folder: Path) -> None:
    """Imports, tools and types, in a folder that holds nothing of ours."""
    outside = folder / "outside"
    outside.mkdir()
    every_name = "import forvalue_dagster as fv; print([getattr(fv, n).__name__ for n in dir(fv)"
    said = run(tools / "python", "-c", every_name + " if n[0] != '_'])", cwd=outside)
    assert "ForValueComponent" in said
    listed = run(tools / "dg", "list", "components", cwd=outside, COLUMNS="200")
    assert "forvalue_dagster.ForValueComponent" in listed
    run(tools / "python", "-m", "pip", "install", "--quiet", "mypy", cwd=outside)
    (outside / "consumer.py").write_text(CONSUMER)
    run(tools / "mypy", "--strict", "consumer.py", cwd=outside)
    (outside / "wrong.py").write_text(WRONG)
    said = run(tools / "mypy", "--strict", "wrong.py", cwd=outside, fails=True)
    assert said.count("error:") == 4, said  # two arguments missing, two of the wrong kind


def assert_tests_pass(tools: Path, folder: Path) -> None:
    """The tests, beside the project that they need, against what was installed."""
    copy = folder / "copy"
    for part in ("tests", "assets"):
        shutil.copytree(ROOT / part, copy / part)
    for file in ("pyproject.toml", "definitions.py", "workspace.yaml"):
        shutil.copy(ROOT / file, copy)
    run(
        *(tools / "python", "-m", "pytest", "-q", "-n", "2", *TESTED),
        *("-m", "not (model or slow or soak or ray or faults or postgres or browser or release)"),
        cwd=copy,
        OMP_NUM_THREADS="1",
        DAGSTER_DISABLE_TELEMETRY="1",
        GX_ANALYTICS_ENABLED="False",
    )
