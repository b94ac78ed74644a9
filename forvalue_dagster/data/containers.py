"""The containers that rows may come in, one entry for each, for the docs and messages."""

from __future__ import annotations

from dataclasses import dataclass

from forvalue_dagster.data.formats import FORMATS


@dataclass(frozen=True)
class Container:
    """A kind of file, folder or object that holds rows.

    Attributes:
        name: its usual name.
        known_by: the sign that it is recognised by.
        rows: the part of it that is a row.
    """

    name: str
    known_by: str
    rows: str


CONTAINERS = (
    *(
        Container(known.name, ", ".join(f"`{suffix}`" for suffix in known.suffixes), known.rows)
        for known in FORMATS
    ),
    Container(
        "Hugging Face dataset",
        "a folder written by `save_to_disk`; of a `DatasetDict` the `split`",
        "a row of the dataset",
    ),
    Container(
        "split of a repository",
        "`split: train` of a folder with `data/train-00000-of-00002.parquet` or `train/…`",
        "as in its files, each of which is a shard",
    ),
    Container(
        "folder of parts",
        "a folder named as a file is (`x.parquet/`), or with Spark's `_SUCCESS`",
        "as in its files, which are one shard",
    ),
    Container(
        "hive partitions",
        "a folder with folders such as `lang=en/` in it",
        "as in its files, which are one shard; `lang` is a column",
    ),
    Container("polars", "`DataFrame`, `LazyFrame`", "a row of the frame"),
    Container("pandas", "`DataFrame`", "a row of the frame, without its index; NaN is null"),
    Container("PyArrow", "`Table`, `RecordBatch`, `RecordBatchReader`", "a row of the table"),
    Container("datasets", "`Dataset`", "a row of the dataset, as it was selected and shuffled"),
    Container("records", "a list, or anything that yields dicts", "a dict"),
)
