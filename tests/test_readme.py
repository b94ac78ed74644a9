"""README and docs say what is true: snippets run, links lead somewhere, figures are measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.s3 import s3_server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text("utf-8")


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


(DEFINITIONS,) = snippets(README)
SENSOR, S3, WORKER = snippets(text("operations"))


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_eight_lines_of_the_readme_load_and_find_shards(tmp_path: Path) -> None:
    assert len(DEFINITIONS.splitlines()) == 8
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "first.jsonl").write_text('{"prompt": "p", "response": "r"}')
    loads = "dg.Definitions.validate_loadable(defs)\nprint(len(list(defs.assets)))"
    shards, assets = run(DEFINITIONS + TICK + loads, tmp_path).splitlines()
    assert shards == "['first']"
    assert int(assets) >= 6


TICK = """
import dagster as dg

with dg.DagsterInstance.ephemeral() as instance, dg.build_sensor_context(
    instance=instance, resources=defs.resources, definitions=defs
) as context:
    result = defs.resolve_sensor_def("forvalue_new_shards")(context)
print(result.dynamic_partitions_requests[0].partition_keys)
"""


def test_the_sensor_snippet_finds_shards(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "first.jsonl").write_text('{"prompt": "p", "response": "r"}')
    assert run(SENSOR + TICK, tmp_path).strip() == "['first']"


def test_the_s3_snippet_finds_shards_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        server.client.create_bucket(Bucket="bucket")
        row = b'{"prompt": "p", "response": "r"}'
        server.client.put_object(Bucket="bucket", Key="train/first.jsonl", Body=row)
        materialize = """
with dg.DagsterInstance.ephemeral() as instance:
    instance.add_dynamic_partitions("forvalue_shards", ["first"])
    job = defs.resolve_implicit_global_asset_job_def()
    rows = job.get_subset(asset_selection={dg.AssetKey("raw_finetuning_data")})
    assert rows.execute_in_process(instance=instance, partition_key="first").success
"""
        said = run(S3 + TICK + materialize, tmp_path)
        assert said.splitlines()[0] == "['first']"
        assert "forvalue/raw_finetuning_data/first.parquet" in server.keys("bucket")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_figures_are_those_of_the_committed_results() -> None:
    passes, many, gate = (
        result("forward_passes"),
        result("many_shards")["revalue"],
        result("noise_gate"),
    )
    (gain,) = (
        one for one in result("selection")["gain of the selected rows"] if one["arm"] == "random"
    )
    cases = [[gate["recipes fitted"]], [one for name, one in gate.items() if "without" in name]]
    fitted, left = ([case["auc, mix"] for case in some] for some in cases)
    errors = [
        [level["mean absolute error"] for case in some for level in case["fraction"].values()]
        for some in cases
    ]
    points = [100 * error for some in errors for error in some]
    features = f"{passes['features / plain']:.2f} ×"
    auc = [f"{sum(some) / len(some):.3f}" for some in (fitted, left)]
    for page, figures in {
        README: [
            f"**{features}**",
            f"**{passes['exact / plain']:.2f} ×**",
            *(f"**{figure}**" for figure in auc),
            f"**{gain['gain']:.3f}** nats a token "
            f"(95 % interval {gain['lower']:.3f} to {gain['upper']:.3f})",
        ],
        text("operations"): [
            features,
            f"3,600 × {passes['features / plain']:.2f}",
            f"{many['all']['seconds']:.0f} s and {many['all']['peak_megabytes'] / 1000:.1f} GB",
        ],
        text("gate"): [*auc, *(f"{max(some):.3f}" for some in errors)],
        text("data"): [f"{min(points):.1f} to {max(points):.1f} points"],
    }.items():
        assert [figure for figure in figures if figure not in page] == []


def test_the_benchmark_page_is_rendered_from_the_results(tmp_path: Path, monkeypatch) -> None:
    from benchmarks import report

    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    report.main()
    page = (tmp_path / "page.md").read_text("utf-8")
    assert page == (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def test_the_snippet_of_a_worker_loads(tmp_path: Path) -> None:
    """The worker of the page computes the features of a shard: see test_worker.py for more."""
    loads = """
defs = fv.valuation_definitions(
    training_rows=fv.RowSource(path="train"),
    validation_rows=fv.RowSource(path="validation.jsonl"),
    storage=fv.Storage(base_dir="files"),
    compute=compute,
)
dg.Definitions.validate_loadable(defs)
"""
    run(WORKER + loads, tmp_path)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param("valuation", marks=pytest.mark.model),
        pytest.param("gate", marks=pytest.mark.model),
        "vision",
    ],
)
def test_the_snippets_of_a_page_run_one_after_another(page: str, tmp_path: Path) -> None:
    shown = snippets(text(page))
    assert shown
    run("\n".join(shown), tmp_path)
