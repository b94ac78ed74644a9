"""Promises of docs/security.md that no other test keeps."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from dagster_aws.s3 import S3Resource

import forvalue_dagster as fv
from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.storage.source_files import remote_images

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "forvalue_dagster").rglob("*.py"))
# What would run code that comes with data.
RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.jsonl.gz", "rows"])
def test_reading_runs_no_code(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(mark))
    if name == "rows":
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
        (tmp_path / name / "a.arrow").write_bytes(bomb)
    else:
        (tmp_path / name).write_bytes(bomb)
    with pytest.raises(DataFileError):
        fv.read_rows(tmp_path / name)
    array = tmp_path / "array.npy"
    np.save(array, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(DataFileError):
        fv.read_rows([{"prompt": "a", "response": "b", "image": np.array([Bomb(mark)])}])
    assert not mark.exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert RUNS_CODE.isdisjoint(alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in RUNS_CODE
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "os.system"), called
            assert not any(
                word.arg in ("allow_pickle", "shell") and ast.unparse(word.value) == "True"
                for word in node.keywords
            )


def test_secrets_are_shown_by_name_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAKE_KEY", "the key itself")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard.jsonl").write_text('{"prompt": "a", "response": "b"}')
    s3 = S3Resource(aws_secret_access_key=dg.EnvVar("LAKE_KEY"))
    definitions = fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(tmp_path / "train"), s3=s3),
        validation_rows=fv.RowSource(path=str(tmp_path / "train")),
        storage=fv.Storage(base_dir=str(tmp_path / "storage"), s3=s3),
    )
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("forvalue_shards", ["shard"])
        job = definitions.resolve_implicit_global_asset_job_def()
        raw = job.get_subset(asset_selection={dg.AssetKey("raw_finetuning_data")})
        result = raw.execute_in_process(instance=instance, partition_key="shard")
        assert result.success
        told = [entry.to_json() for entry in instance.all_logs(result.run_id)]
    assert definitions.resources is not None
    told += [str(resource) for resource in definitions.resources.values()]
    assert told
    assert not [text for text in told if "the key itself" in text]


MARK = "hushhush"  # in every place of a row: wherever it is shown, text would be
CHAT = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]
BAD_ROWS: dict[str, Any] = {
    "a line that is no JSON": f'{{"prompt": "{MARK}',
    "another kind of line": f'"{MARK}"',
    "keys": {f"{MARK} is what I said": MARK},
    "a role": {"messages": [{"role": MARK, "content": "a"}]},
    "a role that is an object": {"messages": [{"role": {MARK: MARK}, "content": "a"}]},
    "keys of a message": {"messages": [{"role": "user", MARK: MARK}]},
    "the type of a part": {"messages": [{"role": "user", "content": [{"type": MARK}]}]},
    "messages in text": {"messages": f"{MARK}: hello"},
    "a call": {"messages": [*CHAT[:1], {"role": "assistant", "tool_calls": MARK}]},
    "tools": {"messages": CHAT, "tools": MARK},
    "a weight": {"messages": [*CHAT[:1], {**CHAT[1], "weight": MARK}]},
    "an image elsewhere": {"prompt": MARK, "response": MARK, "images": [f"/home/{MARK}.png"]},
    "an image with a password": {"prompt": "a", "response": "b", "images": [f"s3://u:{MARK}@b/c"]},
    "a very long reference": {"prompt": "a", "response": "b", "images": [MARK * 9999]},
    "a damaged image": {
        "prompt": "a",
        "response": "b",
        "images": [f"data:image/png;base64,{MARK}!"],
    },
}
GOOD_ROW = {
    "messages": [{"role": "system", "content": MARK}, *CHAT],
    "tools": [{"type": "function", "function": {"name": MARK, "parameters": {MARK: MARK}}}],
    "note": MARK,
    f"{MARK} is what I said": MARK,
}


def told_of(folder: Path, shards: dict[str, list[Any]], *suites: str, **options: Any) -> str:
    """Read rows and check them on a real instance; return all that it, and the pages, say."""
    (folder / "train").mkdir(parents=True)
    for shard, rows in shards.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / "train" / f"{shard}.jsonl").write_text("\n".join(lines) + "\n")
    definitions = fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(folder / "train"), **options),
        validation_rows=fv.RowSource(path=str(folder / "train")),
        storage=fv.Storage(base_dir=str(folder / "storage")),
        suites=suites,
    )
    names = list(shards)
    tags = dict(zip(("start", "end"), (names[0], names[-1]), strict=True))
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("forvalue_shards", names)
        job = definitions.resolve_implicit_global_asset_job_def()
        raw = job.get_subset(asset_selection={dg.AssetKey("raw_finetuning_data")})
        result = raw.execute_in_process(
            instance=instance,
            raise_on_error=False,
            tags={f"dagster/asset_partition_range_{end}": name for end, name in tags.items()},
        )
        events = [entry.to_json() for entry in instance.all_logs(result.run_id)]
    return "\n".join([*events, *(page.read_text() for page in folder.rglob("*.html"))])


def test_no_text_of_a_row_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    suite = tmp_path / "suite.json"
    asked = {"type": "expect_column_most_common_value_to_be_in_set"}
    asked |= {"kwargs": {"column": "note", "value_set": ["a"]}, "meta": {}}
    suite.write_text(json.dumps({"name": "own", "expectations": [asked]}))
    every = {"all": [GOOD_ROW, *BAD_ROWS.values()]}
    skipped = told_of(tmp_path / "skip", every, str(suite), on_bad_row="skip")
    assert "1 failed" not in skipped  # not one row took the shard with it
    assert "most_common" in skipped
    one_each = {place: [row] for place, row in BAD_ROWS.items()}
    refused = told_of(tmp_path / "raise", one_each)
    assert f"{len(one_each)} failed" in refused
    for told in (skipped, refused, *capfd.readouterr(), *(str(w.message) for w in recwarn)):
        assert MARK not in told, told[max(0, told.index(MARK) - 300) :][:600]


def test_an_address_is_shown_without_its_password() -> None:
    address = "https://somebody:hunter2@127.0.0.1:9/data"
    assert "hunter2" not in str(remote_images(address))
    for use in (
        lambda: fv.Storage(base_dir=address),
        lambda: fv.RowSource(path=address).listing(),
        lambda: fv.RowSource(path=address.replace("https", "s3")).listing(),
    ):
        with pytest.raises((ValueError, DataFileError)) as failure:
            use()
        shown = [failure.value, failure.value.__cause__]
        assert not [text for text in shown if "hunter2" in str(text)]
