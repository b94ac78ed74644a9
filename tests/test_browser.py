"""The user interface, seen: `dagster dev` and a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.orchestration.conftest import LIKELY, UNLIKELY, Project, save_trained_model

ROOT = Path(__file__).parents[1]
pytest.importorskip("playwright")
from tests import screenshots as shots  # noqa: E402 (needs playwright)
from tests.serving import serving  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shots.chromium() is None, reason="chromium is not installed"),
]

DEFINITIONS = """
import forvalue_dagster as fv

defs = fv.valuation_definitions(
    training_rows=fv.RowSource(path={folder!r} + "/train"),
    validation_rows=fv.RowSource(path={folder!r} + "/validation.jsonl"),
    storage=fv.Storage(base_dir={folder!r} + "/files"),
    valuation=fv.Valuation(
        name={model!r}, local_files_only=True, noise_recipes=["character_noise", "refusal"]
    ),
    gate=fv.GatePolicy(on_blocked_shard="exclude"),
    automation=fv.Automation(running=False),
)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A project with a shard that passed and one that was blocked, served by `dagster dev`."""
    folder = tmp_path_factory.mktemp("site")
    model = save_trained_model(folder / "model")
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\nnux:\n  enabled: false\n")
    file = folder / "site_defs.py"
    file.write_text(DEFINITIONS.format(folder=str(folder), model=str(model)))
    namespace: dict[str, Any] = {}
    exec(file.read_text(), namespace)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        project = Project(folder, model, instance)
        project.write("train/good.jsonl", project.rows(30, LIKELY, 1))
        project.write("train/noisy.jsonl", project.rows(20, UNLIKELY, 2))
        project.write("validation.jsonl", project.rows(40, LIKELY, 3))
        instance.add_dynamic_partitions("forvalue_shards", ["good", "noisy"])
        for job, shard in (
            ("forvalue_profile", None),
            ("forvalue_shard", "good"),
            ("forvalue_shard", "noisy"),
            ("forvalue_filter", None),
        ):
            namespace["defs"].resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=shard, raise_on_error=False
            )
    with serving(["dagster", "dev", "-f", str(file)], home, ROOT) as address:
        yield address, folder


def test_the_interface_shows_what_a_person_looks_for(
    site: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = site
    seen = {}
    with shots.browser() as page:
        for name in shots.PAGES:
            seen[name] = shots.show(page, address, name)
            page.screenshot(path=tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 20_000
            if name == "asset":
                shots.open_plot(page)
        report = folder / "files" / "filtered_dataset.report.html"
        page.goto(f"file://{report}")
        seen["report"] = page.inner_text("body")
        # The drawings are there, and nothing went wrong on the page.
        assert page.locator("svg").count() == 2
    for asset in ("raw_finetuning_data", "sample_features", "value_scores", "filtered_dataset"):
        assert asset in seen["lineage"]
    for kind in ("torch", "Parquet", "safetensors", "File"):
        assert kind in seen["lineage"]
    for shown in ("Group", "forvalue", "Parquet", "Polars", "noise_probability"):
        assert shown in seen["overview"]
    assert "harmful_share" in seen["asset"]
    assert "blocking" in seen["blocked_shard"]
    assert "above the limit of 15.0%" in seen["blocked_shard"]
    assert "forvalue_new_shards" in seen["automation"]
    assert "left out: fail" in seen["report"]
    # No figure with ten digits, where a person reads.
    for name in ("asset", "blocked_shard", "dataset", "report"):
        digits = [word for word in seen[name].split() if len(word.strip("-.,0")) > 12]
        assert not [word for word in digits if word.replace(".", "").isdigit()], name


def test_the_report_is_legible_in_the_dark(site: tuple[str, Path]) -> None:
    _, folder = site
    with shots.browser(dark=True) as page:
        page.goto(f"file://{folder / 'files' / 'filtered_dataset.report.html'}")
        colour = page.evaluate("getComputedStyle(document.body).color")
    red, green, blue = json.loads(colour.replace("rgb(", "[").replace(")", "]"))
    assert min(red, green, blue) > 150
