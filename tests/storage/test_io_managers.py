"""Tables and tensors through real Dagster materialisations."""

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import torch

from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import ParquetIOManager
from forvalue_dagster.storage.tensors import TensorFile, TensorIOManager

SHARDS = dg.DynamicPartitionsDefinition(name="shards")
SECRET = "the patient's name"


@dg.asset(partitions_def=SHARDS, metadata={"descriptions": {"text": "what was said"}})
def table(context: dg.AssetExecutionContext) -> pl.DataFrame:
    return pl.DataFrame({"text": [SECRET, context.partition_key], "n": [1, 2]})


@dg.asset
def together(context: dg.AssetExecutionContext, table: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
    assert isinstance(table, dict)
    context.add_output_metadata({"shards": sorted(table)})
    return pl.concat(table.values()) if table else pl.LazyFrame({"text": [], "n": []})


@dg.asset(io_manager_key="tensors")
def tensors() -> TensorFile:
    return TensorFile({"a": torch.arange(6.0).reshape(2, 3).T}, {"names": ["ü"], "count": 3})


@dg.asset(io_manager_key="tensors")
def doubled(tensors: TensorFile) -> TensorFile:
    return TensorFile({"a": tensors.tensors["a"] * 2}, tensors.metadata)


def materialize(assets: list, folder: Path, instance: dg.DagsterInstance, **options):
    resources = {
        "io_manager": ParquetIOManager(storage=Storage(base_dir=str(folder))),
        "tensors": TensorIOManager(storage=Storage(base_dir=str(folder))),
    }
    return dg.materialize(assets, resources=resources, instance=instance, **options)


@pytest.mark.parametrize("shards", [[], ["one"], ["one", "two"]])
def test_a_fan_in_is_a_mapping_for_any_number_of_partitions(
    shards: list[str], tmp_path: Path
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shards", shards)
        for shard in shards:
            materialize([table], tmp_path, instance, partition_key=shard)
        result = materialize([table, together], tmp_path, instance, selection=[together])
        assert result.success
        written = pl.read_parquet(tmp_path / "together.parquet")
        assert len(written) == 2 * len(shards)


def test_a_missing_partition_is_an_error_unless_allowed(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shards", ["one", "two"])
        materialize([table], tmp_path, instance, partition_key="one")
        with pytest.raises(FileNotFoundError, match="two"):
            materialize([table, together], tmp_path, instance, selection=[together])


def test_training_text_stays_out_of_the_event_log(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shards", ["one"])
        result = materialize([table], tmp_path, instance, partition_key="one")
        events = instance.all_logs(result.run_id)
        assert not any(SECRET in event.to_json() for event in events)
        (materialization,) = result.asset_materializations_for_node("table")
        metadata = materialization.metadata
    assert metadata["dagster/partition_row_count"].value == 2
    columns = metadata["dagster/column_schema"].value.columns
    assert [(c.name, c.description) for c in columns] == [("text", "what was said"), ("n", None)]


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert materialize([tensors, doubled], tmp_path, instance).success
    manager = TensorIOManager(storage=Storage(base_dir=str(tmp_path)))
    loaded = manager.load_from_path(
        None, __import__("upath").UPath(tmp_path / "doubled.safetensors")
    )
    torch.testing.assert_close(loaded.tensors["a"], 2 * torch.arange(6.0).reshape(2, 3).T)
    assert loaded.metadata == {"names": ["ü"], "count": 3}
    header = (tmp_path / "doubled.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["a"]["dtype"] == "F32"
