"""The component: YAML in, the same graph as the factory's out, in a project as people make it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

import forvalue_dagster as fv

ATTRIBUTES: dict[str, Any] = {
    "training_rows": {"path": "data/train"},
    "validation_rows": {"path": "data/validation.jsonl"},
    "storage": {"base_dir": "data/forvalue"},
}


def load(attributes: dict[str, Any], **scope: Any) -> fv.ForValueComponent:
    text = yaml.safe_dump(ATTRIBUTES | attributes)
    return fv.ForValueComponent.resolve_from_yaml(text, scope=scope)


def built(attributes: dict[str, Any], **document: Any) -> dg.Definitions:
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=fv.ForValueComponent,
            defs_yaml_contents={
                "type": "forvalue_dagster.ForValueComponent",
                "attributes": ATTRIBUTES | attributes,
                **document,
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, definitions):
            return definitions


def test_the_options_are_those_of_the_factory() -> None:
    assert set(fv.ForValueComponent.model_fields) == set(
        signature(fv.valuation_definitions).parameters
    )


OURS = (
    *(fv.RowSource, fv.UpstreamRows, fv.Storage, fv.Valuation, fv.SelectionPolicy),
    *(fv.GatePolicy, fv.WarningPolicy, fv.Refine, fv.Attribution, fv.WarmUp),
    *(fv.Automation, fv.Compute),
)


def test_every_option_is_described_down_to_the_last() -> None:
    schema = fv.ForValueComponent.get_model_cls().model_json_schema()
    parts = [schema, *(schema["$defs"][f"{kind.__name__}Model"] for kind in OURS)]
    missing = [
        f"{part['title']}.{field}"
        for part in parts
        for field, known in part["properties"].items()
        if not known.get("description")
    ]
    assert missing == []
    gate = schema["$defs"]["GatePolicyModel"]["properties"]["max_noise_fraction"]
    assert gate["anyOf"][0] == {"maximum": 1, "minimum": 0, "type": "number"}


def test_yaml_says_everything_that_python_does() -> None:
    component = load(
        {
            "training_rows": {"path": "s3://bucket/rows", "s3": {"region_name": "eu-west-1"}},
            "valuation": {"name": "embedded", "tokens": "all", "batch_tokens": 99},
            "gate": {"max_noise_fraction": 0.3, "on_blocked_shard": "exclude"},
            "selection": {"keep_fraction": None, "keep_count": 10},
            "warnings": {"max_drift": 1.5},
            "refine": {"max_share": 0.5},
            "attribution": {"top": 3},
            "warm_up": {"rank": 4, "epochs": 0.5},
            "automation": {"running": False, "seconds": 60},
            "compute": {"pool": "gpu", "step_tags": {"sample_features": {"size": "large"}}},
        }
    )
    assert isinstance(component.training_rows, fv.RowSource)
    assert component.training_rows.s3 is not None
    assert component.training_rows.s3.region_name == "eu-west-1"
    assert component.valuation == fv.Valuation(tokens="all", batch_tokens=99)
    assert component.gate == fv.GatePolicy(max_noise_fraction=0.3, on_blocked_shard="exclude")
    assert component.selection == fv.SelectionPolicy(keep_fraction=None, keep_count=10)
    assert component.warnings == fv.WarningPolicy(max_drift=1.5)
    assert component.refine == fv.Refine(max_share=0.5)
    assert component.attribution == fv.Attribution(top=3)
    assert component.warm_up == fv.WarmUp(rank=4, epochs=0.5)
    assert component.automation == fv.Automation(running=False, seconds=60)
    assert component.compute == fv.Compute(
        pool="gpu", step_tags={"sample_features": {"size": "large"}}
    )


def test_yaml_names_every_column() -> None:
    component = load(
        {
            "training_rows": {
                "path": "rows",
                "prompt_column": ["task", "context"],
                "response_column": "answer",
                "rejected_column": "worse",
                "label_column": "good",
                "ignore_columns": ["system"],
            },
            "validation_rows": {
                "path": "rows",
                "group_column": "skill",
                "llamafactory": {"formatting": "sharegpt", "columns": {"messages": "chat"}},
            },
        }
    )
    assert component.training_rows.columns == fv.Columns(
        prompt=["task", "context"],
        response="answer",
        rejected="worse",
        label="good",
        ignore=["system"],
    )
    assert component.validation_rows.columns.messages == "chat"
    assert component.validation_rows.columns.group == "skill"
    with pytest.raises(ValueError, match="expected a column's name, or a list of them"):
        fv.RowSource(path="rows", prompt_column=3, response_column="answer")
    with pytest.raises(ValueError, match=r"and so do \['messages'\]; expected one of them"):
        _ = fv.RowSource(path="rows", messages_column="chat", llamafactory={}).columns


def test_rows_of_another_asset() -> None:
    component = load(
        {"training_rows": {"asset": "crawl/rows"}, "upstream_shards": ["monday", "tuesday"]}
    )
    assert component.training_rows == fv.UpstreamRows(asset="crawl/rows")
    assert component.upstream_shards.get_partition_keys() == ["monday", "tuesday"]


def test_templates_stand_for_text_numbers_and_objects() -> None:
    retry = dg.RetryPolicy(max_retries=3)
    component = load(
        {
            "storage": {"base_dir": "{{ env.BUCKET }}/forvalue"},
            "gate": {"max_noise_fraction": "{{ limit }}"},
            "compute": {"retry_policy": "{{ retry }}"},
        },
        env={"BUCKET": "s3://bucket"},
        limit=0.25,
        retry=retry,
    )
    assert component.storage.base_dir == "s3://bucket/forvalue"
    assert component.gate is not None
    assert component.gate.max_noise_fraction == 0.25
    assert component.compute is not None
    assert component.compute.retry_policy is retry


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gate": {"max_noise_fraction": 3}}, "less than or equal to 1"),
        ({"gate": {"max_noise": 0.3}}, "max_noise"),
        ({"training_rows": {"pth": "x"}}, "pth"),
        ({"refine": {"max_share": 7}}, "less than or equal to 1"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        load(wrong)
    (name,) = wrong
    lines = yaml.safe_dump(ATTRIBUTES | wrong).splitlines()
    line = next(n for n, text in enumerate(lines, start=1) if text.startswith(name))
    assert any(f"<string>:{n}" in str(caught.value) for n in (line, line + 1))


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(Exception, match="scoring"):
        load({"scoring": "guess"})


def test_paths_begin_at_the_projects_root() -> None:
    definitions = built({})
    assert definitions.resources is not None
    path = Path(definitions.resources["training_rows"].path)
    assert path.is_absolute()
    assert path.parts[-2:] == ("data", "train")
    far = built({"storage": {"base_dir": "s3://bucket/x"}})
    assert far.resources is not None
    assert far.resources["storage"].base_dir == "s3://bucket/x"


def test_two_instances_in_one_project_do_not_collide(tmp_path: Path) -> None:
    rows = {
        "math": [{"prompt": "1+1?", "response": "2"}],
        "code": [{"prompt": "x", "response": "y"}],
    }
    parts = []
    for name, own in rows.items():
        folder = tmp_path / name
        (folder / "train").mkdir(parents=True)
        (folder / "train" / "shard.jsonl").write_text("\n".join(map(json.dumps, own)))
        parts.append(
            built(
                {
                    "training_rows": {"path": str(folder / "train")},
                    "validation_rows": {"path": str(folder / "train")},
                    "storage": {"base_dir": str(folder / "storage")},
                    "key_prefix": [name],
                    "group_name": name,
                }
            )
        )
    both = dg.Definitions.merge(*parts)
    dg.Definitions.validate_loadable(both)
    with dg.DagsterInstance.ephemeral() as instance:
        for name, own in rows.items():
            instance.add_dynamic_partitions(f"{name}_forvalue_shards", ["shard"])
            job = both.resolve_implicit_global_asset_job_def()
            raw = job.get_subset(asset_selection={dg.AssetKey([name, "raw_finetuning_data"])})
            result = raw.execute_in_process(instance=instance, partition_key="shard")
            table = result.output_for_node(f"{name}__raw_finetuning_data")
            assert json.loads(table["messages"][0])[0]["content"] == own[0]["prompt"]
            stored = tmp_path / name / "storage" / name / "raw_finetuning_data"
            assert [file.name for file in stored.iterdir()] == ["shard.parquet"]


def test_keys_and_attributes_may_be_translated(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard.jsonl").write_text('{"prompt": "1+1?", "response": "2"}')
    definitions = built(
        {
            "training_rows": {"path": str(tmp_path / "train")},
            "storage": {"base_dir": str(tmp_path / "storage")},
            "translation": {
                "key": "lake/{{ name }}_v2",
                "owners": ["team:data"],
                "tags": {"layer": "curated"},
            },
        }
    )
    dg.Definitions.validate_loadable(definitions)
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    filtered = specs["lake/filtered_dataset_v2"]
    assert filtered.owners == ["team:data"]
    assert filtered.tags["layer"] == "curated"
    assert {dep.asset_key.to_user_string() for dep in specs["lake/value_scores_v2"].deps} >= {
        "lake/sample_features_v2",
        "lake/validation_profile_v2",
    }
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("forvalue_shards", ["shard"])
        job = definitions.resolve_implicit_global_asset_job_def()
        raw = job.get_subset(asset_selection={dg.AssetKey(["lake", "raw_finetuning_data_v2"])})
        assert raw.execute_in_process(instance=instance, partition_key="shard").success


def test_dagsters_post_processing_works() -> None:
    definitions = built(
        {},
        post_processing={
            "assets": [{"target": "key:filtered_dataset", "attributes": {"tags": {"tier": "gold"}}}]
        },
    )
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    assert specs["filtered_dataset"].tags["tier"] == "gold"
    assert "tier" not in specs["value_scores"].tags


def command(folder: Path, *words: str, fails: bool = False) -> str:
    tool = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [tool, *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "src"),
            "VIRTUAL_ENV": str(tool.parents[1]),
            "COLUMNS": "200",
        },
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, said
    return said


def test_a_fresh_project(tmp_path: Path) -> None:
    """As the documentation says: a new project, a scaffolded instance, Dagster's own checks."""
    command(tmp_path, "create-dagster", "project", "shop", "--no-uv-sync")
    project = tmp_path / "shop"
    assert "forvalue_dagster.ForValueComponent" in command(project, "dg", "list", "components")
    scaffold = ("dg", "scaffold", "defs", "forvalue_dagster.ForValueComponent", "curation")
    command(project, *scaffold, "--validation-rows", "data/trusted.jsonl")
    assert len((project / "data" / "trusted.jsonl").read_text().splitlines()) == 40
    assert (project / "data" / "train" / "example.jsonl").exists()
    command(project, "dg", "check", "yaml")
    command(project, "dg", "check", "defs")
    listed = command(project, "dg", "list", "defs", "--json")
    assert "filtered_dataset" in listed
    assert "forvalue_automation" in listed
    file = project / "src" / "shop" / "defs" / "curation" / "defs.yaml"
    text = file.read_text()
    file.write_text(text.replace("max_noise_fraction: 0.15", "max_noise_fraction: 15"))
    line = text.splitlines().index("    max_noise_fraction: 0.15") + 1
    said = command(project, "dg", "check", "yaml", fails=True)
    assert f"defs.yaml:{line - 1} " in said  # the line of `gate:`, and the lines below it
    assert "max_noise_fraction: 15" in said


def test_the_projects_own_pipeline_is_a_component() -> None:
    from assets.valuation import POLICY, demo_definitions

    resources = demo_definitions(Path("/demo")).resources
    assert resources is not None
    assert resources["training_rows"].path == "/demo/data/train"
    assert fv.Selection.of(resources["selection"]) == POLICY
