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
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


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


def test_there_are_four_snippets() -> None:
    assert len(SNIPPETS) == 4
    assert all(len(snippet.splitlines()) <= 10 for snippet in SNIPPETS[1:3])


def test_the_definitions_snippet_loads(tmp_path: Path) -> None:
    code = SNIPPETS[0] + "\ndg.Definitions.validate_loadable(defs)\nprint(len(list(defs.assets)))"
    assert int(run(code, tmp_path)) >= 6


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
    assert run(SNIPPETS[1] + TICK, tmp_path).strip() == "['first']"


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
        said = run(SNIPPETS[2] + TICK + materialize, tmp_path)
        assert said.splitlines()[0] == "['first']"
        assert "forvalue/raw_finetuning_data/first.parquet" in server.keys("bucket")


@pytest.mark.model
def test_the_functions_snippet_runs(tmp_path: Path) -> None:
    checks = "\nassert pairs.shape == (2, 1)\nassert scores['value'][0] > scores['value'][1]"
    assert "scored" in run(SNIPPETS[3] + checks, tmp_path)


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
    passes, memory = result("forward_passes"), result("forward_passes_memory")["peak_megabytes"]
    task, again = result("datainf_task_all")["results"], result("revaluation")
    many, step = result("many_shards")["revalue"], result("step_overhead")
    images, seen = result("vision_tasks"), result("vision_passes")
    models = result("accelerator")["models"]
    card = [models[name]["ratios"] for name in ("Llama-3.1-8B", "Qwen2.5-1.5B")]
    flipped, subject, style = (
        images[name] for name in ("mislabelled, 50% flipped", "subject", "style")
    )
    for figure in (
        f"{passes['features / plain']:.2f} ×",
        f"{passes['exact / plain']:.2f} ×",
        f"{passes['exact, 8 groups / plain']:.2f} ×",
        f"{memory['exact 96'] - memory['plain 96']:+.0f} MB",
        f"{again['results']['100000 rows, 1 group(s)']['seconds']:.0f} s",
        f"{again['results']['100000 rows, 8 group(s)']['seconds']:.0f} s",
        f"{many['all']['seconds']:.0f} s, {many['all']['peak_megabytes'] / 1000:.1f} GB; 0",
        f"{step['step / function']:.2f} ×",
        f"{flipped['noise probability']['auc']:.4f}; {flipped['value']['auc']:.3f}; "
        f"{flipped['value, plain, per class of the image']['auc']:.3f}",
        f"{subject['alignment, plain']['auc']:.3f}, {subject['value, plain']['auc']:.3f}; "
        f"{style['alignment, plain']['auc']:.3f}, {style['value, plain']['auc']:.3f}",
        f"{seen['features / plain']:.2f} ×; {seen['exact / plain']:.2f} ×",
        ", ".join(f"{one['features / plain']:.2f} ×" for one in card)
        + "; "
        + ", ".join(f"{one['exact / plain']:.2f} ×" for one in card),
        *(
            f"{task[name]['auc']:.4f} / {task[name]['recall']:.3f}"
            for name in ("plain, exact", "preconditioned, damping 0.1, exact")
        ),
    ):
        assert figure in README, figure


def test_the_figures_of_the_gate_are_those_of_the_committed_results() -> None:
    gate = result("noise_gate")
    fitted = gate["recipes fitted"]
    left = [case for name, case in gate.items() if name.startswith("without")]
    (gain,) = (
        one for one in result("selection")["gain of the selected rows"] if one["arm"] == "random"
    )

    def worst(cases: list[dict]) -> float:
        return max(
            level["mean absolute error"] for case in cases for level in case["fraction"].values()
        )

    for figure in (
        f"{fitted['auc, mix']:.3f}; {sum(case['auc, mix'] for case in left) / len(left):.3f}",
        f"{worst([fitted]):.3f}; {worst(left):.3f}",
        f"{gain['gain']:.3f} ({gain['lower']:.3f} to {gain['upper']:.3f})",
    ):
        assert figure in README, figure


def test_the_benchmark_page_is_rendered_from_the_results(tmp_path: Path, monkeypatch) -> None:
    from benchmarks import report

    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    report.main()
    page = (tmp_path / "page.md").read_text("utf-8")
    assert page == (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def test_the_snippet_on_operations_runs(tmp_path: Path) -> None:
    """The worker of the page computes the features of a shard: see test_worker.py for more."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    loads = """
defs = fv.valuation_definitions(
    training_rows=fv.RowSource(path="train"),
    validation_rows=fv.RowSource(path="validation.jsonl"),
    storage=fv.Storage(base_dir="files"),
    compute=compute,
)
dg.Definitions.validate_loadable(defs)
"""
    run(snippet + loads, tmp_path)


@pytest.mark.parametrize(
    ("page", "count"),
    [
        pytest.param("valuation", 7, marks=pytest.mark.model),
        pytest.param("gate", 4, marks=pytest.mark.model),
        ("vision", 1),
    ],
)
def test_the_snippets_of_a_page_run_one_after_another(
    page: str, count: int, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == count
    run("\n".join(snippets), tmp_path)
