"""Sources of rows: files, or another asset, and how their rows are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import polars as pl
from dagster_aws.s3 import S3Resource
from pydantic import Field, field_validator

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.files import DEFAULT_LIMITS, DataFileError, ReadLimits
from forvalue_dagster.data.formats import SAVED_DATASET, format_of, not_a_data_file, stem
from forvalue_dagster.data.frames import as_table
from forvalue_dagster.data.images import ImageFolder
from forvalue_dagster.data.listing import is_one_table, nothing_to_read, shards_in, unfit_name
from forvalue_dagster.data.own_columns import together
from forvalue_dagster.data.read import CANONICAL_SCHEMA, read_rows_with_reading
from forvalue_dagster.data.reading import RowReading, readings_together
from forvalue_dagster.storage.in_yaml import InYaml
from forvalue_dagster.storage.location import shown
from forvalue_dagster.storage.source_files import (
    LocalFiles,
    S3Files,
    ShardFile,
    SourceFiles,
    Survey,
    by_unit,
    remote_images,
    state_of,
)

# Number of times that a file is read again if it changes while it is read.
_ATTEMPTS = 3


class RowForm(dg.ConfigurableResource["RowForm"], InYaml, extra="forbid"):
    """The columns of a row's conversation, and what to do with unreadable rows."""

    messages_column: str | None = Field(
        default=None, description="Column with a list of messages. Detected by default."
    )
    # Dagster's configuration has no union of text and list.
    prompt_column: Any = Field(
        default=None,
        description="Column with the prompt, or a list of columns that are joined. Detected by "
        "default.",
    )
    response_column: str | None = Field(
        default=None, description="Column with the response. Detected by default."
    )
    system_column: str | None = Field(
        default=None, description="Column with a system prompt. Detected by default."
    )
    history_column: str | None = Field(
        default=None,
        description="Column with earlier turns, a list of [user, assistant]. Detected by default.",
    )
    tools_column: str | None = Field(
        default=None, description="Column with tool definitions. Detected by default."
    )
    chosen_column: str | None = Field(
        default=None,
        description="Column with the chosen answer, of preference data. Detected by default.",
    )
    rejected_column: str | None = Field(
        default=None, description="Column with the rejected answer. Detected by default."
    )
    label_column: str | None = Field(
        default=None,
        description="Column that says whether the answer is a good one (KTO); rows with a bad one "
        "are skipped. Detected by default, if it holds true and false.",
    )
    text_column: str | None = Field(
        default=None, description="Column with plain text, which is scored with tokens 'all'."
    )
    response_marker: str | None = Field(
        default=None,
        description="Marker in a text in front of the response, such as '### Answer:'.",
    )
    ignore_columns: list[str] = Field(
        default=[],
        description="Columns that are not part of the conversation, although they are named like "
        "one.",
    )
    llamafactory: dict[str, Any] | None = Field(
        default=None,
        description="An entry of LLaMA-Factory's dataset_info.json, unchanged, in place of the "
        "other columns.",
    )
    images_column: str | None = Field(
        default=None,
        description="Column with an image or a list of them. By default images or image.",
    )
    group_column: str | None = Field(
        default=None, description="Column with the validation group (capability, language, …)."
    )
    on_bad_row: Literal["raise", "skip"] = Field(
        default="raise",
        description="'raise' stops at an unreadable row; 'skip' keeps it with its problem, and "
        "does not score it.",
    )

    @field_validator("prompt_column")
    @classmethod
    def _names(cls, value: Any) -> Any:
        listed = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if value is None or isinstance(value, str | dg.EnvVar) or (listed and value):
            return value
        raise ValueError("expected a column's name, or a list of them")

    def canonical(
        self,
        rows: Any,
        shard: str | None,
        images: ImageFolder | None = None,
        limits: ReadLimits = DEFAULT_LIMITS,
    ) -> tuple[pl.DataFrame, RowReading]:
        """Return rows, or the rows of a file, in the canonical schema, and how they were read.

        Args:
            rows: rows as in `read_rows`.
            shard: name of the shard.
            images: folder of images that are named by path.
            limits: limits of what is read of a file.

        Raises:
            DataFileError: if a file or row cannot be read.
        """
        frame, readings = read_rows_with_reading(
            rows,
            columns=self.columns,
            shard=shard,
            on_bad_row=self.on_bad_row,
            images=images,
            limits=limits,
        )
        return frame, readings_together(readings.values())

    @property
    def columns(self) -> Columns:
        """The columns of a row's conversation.

        Raises:
            ValueError: if settings contradict each other.
        """
        named: dict[str, Any] = {
            "messages": self.messages_column,
            "prompt": self.prompt_column,
            "response": self.response_column,
            "system": self.system_column,
            "images": self.images_column,
            "history": self.history_column,
            "tools": self.tools_column,
            "chosen": self.chosen_column,
            "rejected": self.rejected_column,
            "label": self.label_column,
            "text": self.text_column,
            "response_marker": self.response_marker,
        }
        if self.llamafactory is None:
            return Columns(**named, group=self.group_column, ignore=self.ignore_columns)
        if given := sorted(name for name, value in named.items() if value is not None):
            raise ValueError(
                "llamafactory says where rows keep their conversation, and so do "
                f"{given}; expected one of them."
            )
        columns = Columns.from_llamafactory(self.llamafactory)
        ignore = (*columns.ignore, *self.ignore_columns)
        return replace(columns, group=self.group_column, ignore=ignore)


class RowSource(RowForm):
    """Finetuning rows in files: each file or dataset directly inside a folder is a shard."""

    path: str = Field(
        description="A data file, a folder of them, a directory of Hugging Face datasets (with "
        "split), or a prefix s3://bucket/prefix."
    )
    split: str | None = Field(
        default=None, description="Split of a directory of Hugging Face datasets: 'train', …"
    )
    image_root: str | None = Field(
        default=None,
        description="Folder, or prefix such as s3://… or https://…, of images that are named by "
        "path; by default the path's own folder. Nothing outside of it is read.",
    )
    s3: S3Resource | None = Field(
        default=None,
        description="Endpoint, region, profile and retries of s3://; by default the usual "
        "credentials are used.",
    )
    line_bytes: int = Field(
        default=DEFAULT_LIMITS.line_bytes,
        gt=0,
        description="Largest size of a line, or row of a text file; a longer one is a problem.",
    )
    file_bytes: int = Field(
        default=DEFAULT_LIMITS.file_bytes,
        gt=0,
        description="Largest size of a file in memory, decompressed; a larger file is an error.",
    )

    def listing(self) -> dict[str, ShardFile]:
        """Return shard → file; an empty folder has none yet.

        Raises:
            DataFileError: as in `survey`.
        """
        return self.survey().shards

    def survey(self) -> Survey:
        """Return the shards, and the files that are passed over.

        Raises:
            DataFileError: if the path is missing, not accessible, or holds nothing to read.
        """
        files, only = self._files()
        if only is not None:
            return Survey({stem(Path(only)): self._file(files, only)}, {})
        states = files.states(deep=self.split is not None)
        name = self.path.rstrip("/").rpartition("/")[2]
        if self.split is None and is_one_table(name, states):
            return Survey({stem(Path(name)): ShardFile("", state_of(states))}, {})
        found = shards_in(states, self.path, self.split)
        passed_over = dict(found.passed_over)
        inside = by_unit(states, set(found.shards.values()))
        shards = {}
        for shard, path in found.shards.items():
            if files.leads_out(path):
                passed_over[path] = "a link that leads out of the folder, or nowhere"
            else:
                shards[shard] = ShardFile(path, state_of(inside[path]))
        if passed_over and not shards:
            raise nothing_to_read(self.path, passed_over)
        return Survey(shards, passed_over)

    def state(self) -> str:
        """Return one state for all files, which changes with any file's content.

        Raises:
            DataFileError: as in `listing`.
        """
        return self.survey().state

    def read(
        self, shard: str | None = None, listing: dict[str, ShardFile] | None = None
    ) -> pl.DataFrame:
        """Read one shard, or all; arguments and errors as in `read_with_reading`."""
        return self.read_with_reading(shard, listing)[0]

    def read_with_reading(
        self, shard: str | None = None, listing: dict[str, ShardFile] | None = None
    ) -> tuple[pl.DataFrame, RowReading]:
        """Read one shard, or all, and say how it was read.

        Args:
            shard: name of the shard; None reads all shards.
            listing: listing of the source, if it is known.

        Raises:
            ValueError: if there is no such shard.
            DataFileError: if a file or row cannot be read, or a file changes all the time.
        """
        listing = self.listing() if listing is None else listing
        if shard is None:
            if not listing:
                raise DataFileError(f"{self.path} holds no data file.")
            read = [self.read_with_reading(name, listing) for name in sorted(listing)]
            frame = together([frame for frame, _ in read], CANONICAL_SCHEMA)
            return frame, readings_together(reading for _, reading in read)
        if shard not in listing:
            raise ValueError(
                f"{self.path} holds no shard {shard!r}; it holds {', '.join(sorted(listing))}."
            )
        files, _ = self._files()
        path = listing[shard].path
        limits = ReadLimits(self.line_bytes, self.file_bytes)
        for _ in range(_ATTEMPTS):
            before = self._file(files, path)
            error = None
            try:
                with files.fetch(path) as local:
                    rows = self.canonical(local, shard, self._image_folder(files), limits)
            except (DataFileError, OSError) as problem:
                error = problem
            if self._file(files, path) == before:
                if error is not None:
                    raise error
                return rows
        raise DataFileError(
            f"{path} of {self.path} changed {_ATTEMPTS} times while it was read; expected a file "
            "that is complete. Write it under another name and rename it."
        )

    def _files(self) -> tuple[SourceFiles, str | None]:
        """Return the folder, and the one file or dataset in it if the path names one."""
        if shown(self.path) != self.path or "://" in self.path.removeprefix("s3://"):
            raise DataFileError(
                f"{shown(self.path)} is no place that rows are read from; expected a local path or "
                "s3://bucket/prefix."
            )
        if self.path.startswith("s3://"):
            folder, _, name = self.path.rpartition("/")
            if format_of(name):
                return S3Files.at(folder, self.s3), name
            return S3Files.at(self.path, self.s3), None
        path = Path(self.path)
        if path.is_file() and format_of(path.name) is None:
            raise not_a_data_file(path)
        one = path.is_file() or (path / SAVED_DATASET).is_file()
        return (LocalFiles(path.parent), path.name) if one else (LocalFiles(path), None)

    def _image_folder(self, files: SourceFiles) -> ImageFolder:
        if self.image_root is None:
            return files.images()
        if self.image_root.startswith("s3://"):
            return S3Files.at(self.image_root, self.s3).images()
        if "://" in self.image_root:
            return remote_images(self.image_root)
        return LocalFiles(Path(self.image_root)).images()

    def _file(self, files: SourceFiles, path: str) -> ShardFile:
        return ShardFile(path, state_of(files.states(path)))


class UpstreamRows(RowForm):
    """Finetuning rows from another asset: a frame of any library, or a list of dicts.

    If that asset is partitioned, its partitions are the shards; otherwise it is one shard.
    """

    asset: str = Field(description="Key of the asset, '/' between its parts.")

    @property
    def key(self) -> dg.AssetKey:
        """The asset's key."""
        return dg.AssetKey.from_user_string(self.asset)

    def rows_of(self, obj: Any, shard: str) -> pl.DataFrame:
        """Return the asset's rows; arguments and errors as in `rows_with_reading`."""
        return self.rows_with_reading(obj, shard)[0]

    def rows_with_reading(self, obj: Any, shard: str) -> tuple[pl.DataFrame, RowReading]:
        """Return the asset's rows in the canonical schema, and how they were read.

        Raises:
            DataFileError: if the object holds no rows, a row cannot be read, or the shard's name
                cannot be a file's.
        """
        if reason := unfit_name(shard):
            raise DataFileError(
                f"the partition {shard[:100]!r} of {self.asset} can be no shard: {reason}."
            )
        try:
            table = as_table(obj)
        except DataFileError as error:
            raise DataFileError(f"{self.asset} yields {error}") from None
        if isinstance(table, pl.DataFrame):
            # A frame that was canonical before: its row numbers and ids may be out of date.
            return self.canonical(table.drop("shard", "row", "sample_id", strict=False), shard)
        return self.canonical(obj, shard)
