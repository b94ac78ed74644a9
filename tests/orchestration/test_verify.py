"""`python -m forvalue_dagster.verify`: what stands in front of a finetuning job outside Dagster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from forvalue_dagster.verify import main
from tests.orchestration.conftest import Instances, Project
from tests.s3 import s3_server

KEY = "FORVALUE_SIGNING_KEY"
FILES = ("filtered_dataset.parquet", "filtered_dataset.jsonl")


@pytest.fixture(scope="module")
def certified(
    valued: Path, tmp_path_factory: pytest.TempPathFactory, model_directory: Path
) -> Path:
    """The files of a dataset that was certified, and signed."""
    folder = tmp_path_factory.mktemp("certified") / "project"
    with Instances().open(folder, like=valued) as instance, pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, "the pipeline's")
        instance.delete_dynamic_partition("forvalue_shards", "bad")
        assert Project(folder, model_directory, instance).run("forvalue_filter").success
    return folder / "files"


@pytest.fixture
def files(certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(KEY, raising=False)
    for path in certified.glob("*.*"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_certified_file(files: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(files / name)]) == 0
    said = capsys.readouterr().out
    for expected in (f"certified: {name}", "in  shard 'good': pass", '"max_noise_fraction": 0.15'):
        assert expected in said


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(files: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = bytearray((files / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (files / name).write_bytes(bytes(damaged))
    assert main([str(files / name)]) == 1
    assert "is not the file that was certified" in capsys.readouterr().err


def test_what_is_none_of_the_dataset(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = str(files / "filtered_dataset.manifest.json")
    for name in ("dropped_rows.parquet", "dropped_rows.jsonl"):
        assert main([str(files / name), "--manifest", manifest]) == 1
    assert main([str(files / "dropped_rows.parquet")]) == 1
    assert "there is no certificate" in capsys.readouterr().err
    assert main([str(files / "absent.parquet"), "--manifest", manifest]) == 1
    # A copy under another name is the same rows.
    shutil.copy(files / FILES[0], files / "train.parquet")
    assert main([str(files / "train.parquet"), "--manifest", manifest]) == 0


def test_the_policy_and_the_age(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(files / FILES[0])
    assert main([path, "--expect", "max_noise_fraction=0.15", "--expect", "by=alignment"]) == 0
    assert main([path, "--expect", "max_noise_fraction=0.05"]) == 1
    assert "its max_noise_fraction is 0.15; expected 0.05" in capsys.readouterr().err
    assert main([path, "--expect", "max_nose=0.05"]) == 1
    assert "its policy has no 'max_nose'" in capsys.readouterr().err
    assert main([path, "--max-age", "1"]) == 0
    assert main([path, "--max-age", "0"]) == 1
    assert "hours ago" in capsys.readouterr().err


def test_a_signature(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, manifest = str(files / FILES[1]), files / "filtered_dataset.manifest.json"
    assert main([path, "--signed"]) == 1
    assert "FORVALUE_SIGNING_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv(KEY, "the pipeline's")
    assert main([path]) == 0
    assert "signature: the pipeline's" in capsys.readouterr().out
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(stored | {"made_at": "2099-01-01T00:00:00+00:00"}))
    assert main([path]) == 1
    assert "changed, or forged" in capsys.readouterr().err
    del stored["signature"]
    manifest.write_text(json.dumps(stored))
    assert main([path]) == 1
    assert "it is not signed" in capsys.readouterr().err
    monkeypatch.setenv(KEY, "somebody else's")
    assert main([path]) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"shards": [{}]}'])
def test_a_certificate_that_is_none(
    files: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "filtered_dataset.manifest.json").write_text(content)
    assert main([str(files / FILES[0])]) == 1
    assert "NOT CERTIFIED" in capsys.readouterr().err


def test_a_certificate_that_is_against_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = files / "filtered_dataset.manifest.json"
    stored = json.loads(path.read_text())
    stored["shards"][0]["verdict"]["passed"] = False
    path.write_text(json.dumps(stored))
    assert main([str(files / FILES[0])]) == 1
    assert "shard 'good'" in capsys.readouterr().err


def test_in_a_shell_without_torch_or_an_instance(files: Path) -> None:
    """The line of the documentation: what comes after && runs only behind the gate."""
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    program = (
        "import sys; from forvalue_dagster.verify import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'great_expectations'} & set(sys.modules); "
        "sys.exit(status)"
    )

    def shell(name: str) -> subprocess.CompletedProcess[str]:
        line = f'"$PYTHON" -c "$PROGRAM" {files / name} --copy-to {files}/train.jsonl && echo RUNS'
        return subprocess.run(
            ["sh", "-c", line],
            capture_output=True,
            text=True,
            env=environment | {"PYTHON": sys.executable, "PROGRAM": program},
            check=False,
        )

    done = shell(FILES[1])
    assert "RUNS" in done.stdout, done.stderr
    assert pl.read_ndjson(files / "train.jsonl").equals(pl.read_ndjson(files / FILES[1]))
    (files / FILES[1]).write_text("{}\n")
    assert "RUNS" not in shell(FILES[1]).stdout


def test_in_object_storage(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_server() as server:
        server.client.create_bucket(Bucket="data")
        for path in files.glob("filtered_dataset.*"):
            server.client.put_object(Bucket="data", Key=path.name, Body=path.read_bytes())
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        assert main(["s3://data/filtered_dataset.parquet"]) == 0
        server.client.put_object(Bucket="data", Key=FILES[0], Body=b"other")
        assert main(["s3://data/filtered_dataset.parquet"]) == 1
