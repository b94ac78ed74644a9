"""The documentation is true: it builds, commands and snippets run, messages exist."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

import forvalue_dagster as fv
from forvalue_dagster.orchestration.scaffolding import write_examples

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("mkdocs")
    done = subprocess.run(
        [tool, "build", "--strict", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "start" / "index.html").exists()


def test_the_reference_is_rendered_from_the_code(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("render_reference", DOCS / "render_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text("utf-8") == (DOCS / "reference.md").read_text("utf-8")


def test_the_table_of_forms_is_rendered_from_the_code(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("render_forms", DOCS / "render_forms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = tmp_path / "page.md"
    shutil.copy(DOCS / "data.md", page)
    module.main(page)
    assert page.read_text("utf-8") == (DOCS / "data.md").read_text("utf-8")


def test_the_columns_of_the_data_page_load() -> None:
    (shown,) = blocks("data.md", "yaml")
    rows = yaml.safe_load(shown)["training_rows"]
    columns = fv.RowSource(**rows).columns
    assert (columns.messages, columns.system, columns.role_key) == ("chat", "persona", "who")


def test_the_first_five_minutes(tmp_path: Path) -> None:
    """Every command of the page but what installs, and what does not end."""
    lines = [line for block in blocks("start.md", "sh") for line in block.splitlines()]
    commands = [line.split() for line in lines if not line.startswith(("pip ", "dg dev"))]
    assert len(commands) == 6
    folder = tmp_path
    environment = os.environ | {
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(Path(sys.executable).parents[1]),
    }
    for command in commands:
        if command[0] == "cd":
            folder /= command[1]
            environment["PYTHONPATH"] = str(folder / "src")
            continue
        tool = Path(sys.executable).with_name(command[0])
        done = subprocess.run(
            [tool, *command[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout + done.stderr)
    # The page shows the file as it was written.
    (shown,) = blocks("start.md", "yaml")
    written = (folder / "src" / "curation" / "defs" / "valuation" / "defs.yaml").read_text()
    assert re.sub(r" +#.*", "", shown).split() == written.split()


def test_the_component_of_the_first_five_minutes_loads() -> None:
    (shown,) = blocks("start.md", "yaml")
    document = yaml.safe_load(shown)
    assert document["type"] == "forvalue_dagster.ForValueComponent"
    fv.ForValueComponent.resolve_from_yaml(yaml.safe_dump(document["attributes"]))


@pytest.mark.parametrize("page", ["start.md", "data.md"])
def test_snippets_run(page: str, tmp_path: Path) -> None:
    (code,) = blocks(page, "python")
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )


def test_the_checks_that_block_are_drawn_and_all_are_explained(tmp_path: Path) -> None:
    definitions = fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(tmp_path)),
        validation_rows=fv.RowSource(path=str(tmp_path / "validation.jsonl")),
        storage=fv.Storage(base_dir=str(tmp_path / "store")),
    )
    graph = definitions.resolve_asset_graph()
    checks = {key.name: graph.get(key).blocking for key in graph.asset_check_keys}
    drawn = set(re.findall(r"✔ (\w+)", (DOCS / "index.md").read_text("utf-8")))
    assert drawn == {name for name, blocking in checks.items() if blocking}
    page = (DOCS / "gate.md").read_text("utf-8")
    assert [name for name in checks if f"`{name}`" not in page] == []


@pytest.mark.model
def test_what_the_first_five_minutes_promise(tmp_path: Path) -> None:
    """The scaffolded rows pass the gate; with half of the answers damaged they do not."""
    write_examples(tmp_path, "train", "validation.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "train" / "example.jsonl").open()]
    shuffler = random.Random(0)
    for row in rows[:20]:
        words = row["response"].split()
        row["response"] = " ".join(shuffler.sample(words, len(words)))
    (tmp_path / "train" / "damaged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    definitions = fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(tmp_path / "train")),
        validation_rows=fv.RowSource(path=str(tmp_path / "validation.jsonl")),
        storage=fv.Storage(base_dir=str(tmp_path / "store")),
    )
    passed = {}
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("forvalue_shards", ["damaged", "example"])
        definitions.resolve_job_def("forvalue_profile").execute_in_process(instance=instance)
        for shard in ("damaged", "example"):
            run = definitions.resolve_job_def("forvalue_shard").execute_in_process(
                instance=instance, partition_key=shard, raise_on_error=False
            )
            checks = {check.check_name: check for check in run.get_asset_check_evaluations()}
            passed[shard] = checks["noise_fraction"].passed
    assert passed == {"damaged": False, "example": True}


@pytest.mark.model
def test_the_tutorial_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    stored = [cell.get("outputs") for cell in notebook.cells]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    # It is stored as it comes out, as far as this does not hang on the machine's last digits.
    assert [len(cell.get("outputs") or ()) for cell in notebook.cells] == [
        len(outputs or ()) for outputs in stored
    ]
    assert "site-packages" not in (DOCS / "tutorial.ipynb").read_text("utf-8")


def test_every_message_of_the_troubleshooting_page_is_one_of_ours() -> None:
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) >= 14
    sources = [path.read_text("utf-8") for path in (ROOT / "forvalue_dagster").rglob("*.py")]
    # Messages are written over several literals: what stands between them is no part of them.
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    text = re.sub(r"\{[^{}]*\}", "{}", text)
    for message in messages:
        pattern = re.escape(message).replace(r"\ 3\ ", r"\ \{\}\ ")
        assert re.search(pattern, text), message


def test_every_file_of_the_house_exists() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    named = re.findall(
        r"`((?:options|data|models|engine|valuation|storage|quality|orchestration)/[\w/]+\.py)`",
        page,
    )
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "forvalue_dagster" / name).exists()] == []


def test_every_test_that_a_promise_names_exists() -> None:
    page = (DOCS / "security.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_way_around_has_its_test() -> None:
    page = (DOCS / "gate.md").read_text("utf-8")
    files = (ROOT / "tests").rglob("test_*.py")
    tests = "\n".join(path.read_text("utf-8") for path in files)
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) >= 17
    assert [name for name in named if f"def {name}(" not in tests] == []
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/[\w/]+\.py)`", page))
