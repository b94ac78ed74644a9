"""The house keeps its rules at run time, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import forvalue_dagster as fv

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "great_expectations", "sklearn", "matplotlib", "peft")


def loaded_modules(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_definitions_load_without_the_heavy_libraries() -> None:
    assert loaded_modules("import definitions; definitions.defs").isdisjoint(HEAVY)


def test_the_package_loads_nothing() -> None:
    assert loaded_modules("import forvalue_dagster").isdisjoint({*HEAVY, "dagster", "polars"})


def test_dagsters_tools_may_look_at_every_name() -> None:
    """`dg` looks for components at every public name; that must not take seconds."""
    looked = "import forvalue_dagster as fv; [getattr(fv, name) for name in dir(fv)]"
    assert loaded_modules(looked).isdisjoint(HEAVY)


def test_public_names() -> None:
    assert fv.__all__ == [
        "Alerts",
        "Attribution",
        "Automation",
        "Columns",
        "Compute",
        "ForValueComponent",
        "GatePolicy",
        "GateReport",
        "ModelConfig",
        "NoiseOptions",
        "ReadLimits",
        "Refine",
        "RowSource",
        "Selection",
        "SelectionPolicy",
        "Storage",
        "UpstreamRows",
        "Valuation",
        "WarmUp",
        "WarningPolicy",
        "corrupt_responses",
        "embedded_model_directory",
        "noise_recipe",
        "pairwise_values",
        "preview",
        "read_rows",
        "require_certified",
        "sample_features",
        "select_rows",
        "train_adapter",
        "validation_profile",
        "valuation_definitions",
        "value_dataset",
        "value_features",
    ]
    assert all(getattr(fv, name).__doc__ for name in fv.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fv.nothing


def test_the_workspace_is_valid() -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("dagster"),
            "definitions",
            "validate",
            "-w",
            "workspace.yaml",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"DAGSTER_DISABLE_TELEMETRY": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr


def test_the_wheel_ships_the_plugin_alone(tmp_path: Path) -> None:
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "forvalue_dagster",
        "forvalue_dagster-0.1.0.dist-info",
    }
    assert "forvalue_dagster/py.typed" in names
