"""A small but complete project: real files, a real (tiny) model, a real Dagster instance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch

import forvalue_dagster as fv
from tests.postgres import Server, missing, running_server
from tests.tiny import byte_tokenizer, tiny_model

# What the model of these tests has learnt, and what is noise to it.
LIKELY, UNLIKELY = "abcd", "wxyz"


@dataclass
class Project:
    folder: Path
    model: Path
    instance: dg.DagsterInstance
    options: dict[str, Any] = field(default_factory=dict)
    likely: str = LIKELY
    unlikely: str = UNLIKELY

    @property
    def definitions(self) -> dg.Definitions:
        defaults = {
            "training_rows": fv.RowSource(path=str(self.folder / "train"), on_bad_row="skip"),
            "validation_rows": fv.RowSource(path=str(self.folder / "validation.jsonl")),
            "storage": fv.Storage(base_dir=str(self.folder / "files")),
            "valuation": self.valuation(),
        }
        return fv.valuation_definitions(**defaults | self.options)

    def valuation(self, **options: Any) -> fv.Valuation:
        # Damage that the tiny model can tell: of words it knows nothing.
        recipes = ["character_noise", "refusal"]
        return fv.Valuation(
            name=str(self.model), local_files_only=True, noise_recipes=recipes, **options
        )

    def rows(self, count: int, characters: str, seed: int) -> list[dict[str, str]]:
        generator = np.random.default_rng(seed)

        def text(alphabet: str) -> str:
            return "".join(generator.choice(list(alphabet), 12))

        return [{"prompt": text(self.likely), "response": text(characters)} for _ in range(count)]

    def write(self, name: str, rows: list[dict] | list[str]) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def run(self, job: str, shard: str | None = None) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=shard, raise_on_error=False
        )

    def value(self, *shards: str) -> list[dg.ExecuteInProcessResult]:
        self.instance.add_dynamic_partitions("forvalue_shards", shards)
        return [self.run("forvalue_shard", shard) for shard in shards]

    def table(self, *parts: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder.joinpath("files", *parts).with_suffix(".parquet"))

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "files" / "filtered_dataset.manifest.json").read_text())


def save_trained_model(path: Path) -> Path:
    """A tiny model that has learnt, in a second, to expect responses of the letters a to d."""
    model, tokenizer = tiny_model("llama", torch.float32), byte_tokenizer()
    generator = np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        texts = ["".join(generator.choice(list(LIKELY), 12)) for _ in range(16)]
        turns = [
            [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
            for text in texts
        ]
        batch = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained_model(tmp_path_factory.mktemp("model"))


@dataclass
class Instances:
    """Opens Dagster instances, whose runs and events lie in SQLite or on a PostgreSQL server."""

    server: Server | None = None
    _databases: dict[Path, str] = field(default_factory=dict)

    @contextmanager
    def open(
        self,
        folder: Path,
        like: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Iterator[dg.DagsterInstance]:
        """Open an instance; every process that has its folder as DAGSTER_HOME opens it, too.

        Args:
            folder: of the instance; SQLite's files lie in it.
            like: the folder of a closed instance; the new one begins as a copy of all of it.
            overrides: further settings, as in a dagster.yaml.
        """
        if like is not None:
            shutil.copytree(like, folder)
        settings = dict(overrides or {})
        if self.server is None:
            with dg.instance_for_test(temp_dir=str(folder), overrides=settings) as instance:
                yield instance
            return
        database = self.server.create(None if like is None else self._databases[like])
        self._databases[folder] = database
        settings["storage"] = {"postgres": {"postgres_url": self.server.url(database)}}
        with dg.instance_for_test(temp_dir=str(folder), overrides=settings) as instance:
            # Connections are kept, as the web server keeps them. Otherwise each query opens its
            # own, and evaluating automation in a test makes thousands: six times as slow.
            instance.optimize_for_webserver(
                statement_timeout=60_000, pool_recycle=-1, max_overflow=-1
            )
            yield instance
        self.server.disconnect(database)


# For modules about what is stored: each of their tests runs twice.
ON_BOTH_STORAGES = pytest.mark.parametrize(
    "instances", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


@pytest.fixture(scope="session")
def instances(request: pytest.FixtureRequest) -> Iterator[Instances]:
    """SQLite is what a laptop has; PostgreSQL is what a team has."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield Instances()
        return
    if reason := missing():
        pytest.skip(reason)
    with running_server() as server:
        yield Instances(server)


@pytest.fixture
def project(tmp_path: Path, model_directory: Path, instances: Instances) -> Iterator[Project]:
    with instances.open(tmp_path) as instance:
        made = Project(tmp_path, model_directory, instance)
        made.write("validation.jsonl", made.rows(40, made.likely, seed=0))
        made.write("train/good.jsonl", made.rows(30, made.likely, seed=1))
        made.write("train/bad.jsonl", made.rows(20, made.unlikely, seed=2))
        yield made


@pytest.fixture(scope="module")
def valued(
    tmp_path_factory: pytest.TempPathFactory, model_directory: Path, instances: Instances
) -> Path:
    """A project with a profile and three valued shards, of which one is noise."""
    folder = tmp_path_factory.mktemp("valued")
    with instances.open(folder) as instance:
        made = Project(folder, model_directory, instance)
        made.write("validation.jsonl", made.rows(40, LIKELY, seed=0))
        made.write("train/good.jsonl", made.rows(30, LIKELY, seed=1))
        made.write("train/other.jsonl", made.rows(20, LIKELY, seed=3))
        made.write("train/bad.jsonl", made.rows(20, UNLIKELY, seed=2))
        assert made.run("forvalue_profile").success
        assert [run.success for run in made.value("good", "other", "bad")] == [True, True, False]
    return folder
