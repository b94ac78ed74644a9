"""Which files of a folder or prefix are shards, judged by their paths alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

from forvalue_dagster.data.files import SUFFIXES, DataFileError, data_file_stem


def shards_in(paths: Collection[str], origin: str, split: str | None = None) -> dict[str, str]:
    """Return shard → path of its data file, or of its folder if that is a saved dataset.

    Without a split, every data file and every saved dataset directly inside the folder is a
    shard. With one, the folder is a directory of Hugging Face datasets: a saved `DatasetDict`, or
    data files whose path names the split, such as data/train-00000-of-00002.parquet.

    Args:
        paths: of files, relative to the folder, "/" between parts.
        origin: what an error calls the folder.
        split: of a directory of Hugging Face datasets.

    Raises:
        DataFileError: if the folder is a DatasetDict and no split is named, if there is no such
            split, or if two files would be the same shard.
    """
    # Hidden files are others' business: half-written ones, a finder's notes.
    paths = [path for path in paths if not any(part.startswith(".") for part in path.split("/"))]
    saved = {str(PurePosixPath(path).parent) for path in paths if _name(path) == "state.json"}
    if split is None:
        if "dataset_dict.json" in paths:
            splits = sorted(folder for folder in saved if "/" not in folder)
            raise DataFileError(
                f"{origin} is a DatasetDict; expected one dataset. Set split to one of "
                f"{', '.join(splits)}."
            )
        found = [folder for folder in saved if "/" not in folder]
        found += [path for path in paths if "/" not in path and path.endswith(SUFFIXES)]
    else:
        found = [folder for folder in saved if _name(folder) == split]
        found += [
            path
            for path in paths
            if path.endswith(SUFFIXES)
            and split in re.split(r"[/._-]", path)
            and not any(path.startswith(f"{folder}/") for folder in saved)
        ]
        if not found:
            raise DataFileError(
                f"{origin} holds no split {split!r}; expected a folder of that name written by "
                f"datasets' save_to_disk, or files such as data/{split}-00000-of-00001.parquet."
            )
    shards: dict[str, str] = {}
    for path in sorted(found):
        shard = data_file_stem(PurePosixPath(path.replace("/", "-")))
        if shard in shards:
            raise DataFileError(
                f"{shards[shard]} and {path} of {origin} would both be the shard {shard!r}; "
                "rename one."
            )
        shards[shard] = path
    return shards


def _name(path: str) -> str:
    return PurePosixPath(path).name
