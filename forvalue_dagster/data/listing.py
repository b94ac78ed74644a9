"""Find the shards of a folder or prefix by the paths of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.data.formats import (
    DATASET_DICT,
    FORMATS,
    SAVED_DATASET,
    SUFFIXES,
    format_of,
    stem,
)

# Names become partitions and files: with our suffix and a temporary suffix, at most 255 bytes.
MAX_NAME = 200
# Characters that Dagster does not allow in a partition.
_NO_NAME = re.compile(r"[\x00-\x1f\x7f]|\.\.\.")
_PART_OF_SPLIT = re.compile(r"([-_.]\d+(-of-\d+)?(-[0-9a-f]{16})?)?")
# Files next to data files that hold no rows.
_BESIDE = re.compile(
    r"(?i)^_|^(license|notice|makefile|dockerfile)|"
    r"\.(md|rst|py|sh|ipynb|ya?ml|toml|cfg|ini|log|crc|lock|html|pdf|"
    r"png|jpe?g|webp|gif|bmp|tiff?)$|^dataset(_info|_infos|_dict)\.json$|^state\.json$"
)
_REASONS = (
    (r"\.(tmp|part|partial|crdownload|download|incomplete)$", "a file that is not complete"),
    (r"\.(xlsx?|xlsm|ods|numbers)$", "a spreadsheet; save it as CSV"),
    (r"\.(zip|tar|tgz|7z|rar|bz2|xz|lz4)$|\.tar\.(gz|zst)$", "an archive; unpack it"),
    (r"\.(pkl|pickle|pt|pth|npy|npz|bin|joblib)$", "its format can run code; save it as Parquet"),
    (r"\.(txt|xml|avro|orc|db|sqlite3?|msgpack|h5|hdf5|lance)$", "a format that is not read"),
)


@dataclass(frozen=True)
class Listing:
    """The shards and other files of a folder.

    Attributes:
        shards: shard → path of its file, or of its folder if that holds all of it.
        passed_over: path → why it is not a shard.
    """

    shards: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)


def files_below(root: Path, *, deep: bool) -> Iterator[str]:
    """Yield the paths of files below a folder, "/" between parts.

    Args:
        root: the folder.
        deep: whether to look into all folders; otherwise into those directly inside, and further
            down where the files of one table lie (x.parquet/lang=en/…).
    """

    def walk(folder: str, inside: tuple[str, ...]) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = (*inside, entry.name)
                if not _is_folder(entry):
                    yield "/".join(path)
                elif inside and entry.is_symlink():
                    continue  # it may lead back to its own folder
                elif deep or not inside or "=" in entry.name or any(map(format_of, inside)):
                    yield from walk(entry.path, path)

    yield from walk(str(root), ())


def shards_in(paths: Collection[str], origin: str, split: str | None = None) -> Listing:
    """Return which files and folders are shards, and why others are not.

    Without a split, every data file, saved dataset and folder of parts directly inside the
    folder is a shard. With one, the folder is a directory of Hugging Face datasets: a saved
    `DatasetDict`, or data files whose path names the split, such as
    data/train-00000-of-00002.parquet.

    Args:
        paths: paths of the files, relative to the folder, "/" between parts.
        origin: name of the folder in an error.
        split: the split to read of a directory of Hugging Face datasets.

    Raises:
        DataFileError: if the folder is a DatasetDict and no split is named, or if there is no
            such split.
    """
    # Hidden files are not data: half-written files, metadata of a file manager.
    paths = sorted(p for p in paths if not any(part.startswith(".") for part in p.split("/")))
    saved = {str(PurePosixPath(path).parent) for path in paths if _name(path) == SAVED_DATASET}
    whole = saved | _folders_of_parts(paths)
    if split is None and DATASET_DICT in paths:
        splits = sorted(folder for folder in saved if "/" not in folder)
        raise DataFileError(
            f"{origin} is a DatasetDict; expected one dataset. Set split to one of "
            f"{', '.join(splits)}."
        )
    units = dict.fromkeys(_outermost(path, whole) or path for path in paths)
    data = [unit for unit in units if unit in whole or format_of(_name(unit))]
    if split is None:
        found = [unit for unit in data if "/" not in unit]
    else:
        found = [unit for unit in data if _is_of_split(unit, split)]
        if not found:
            held = ", ".join(data[:10]) or "no data file"
            raise DataFileError(
                f"{origin} holds no split {split!r}; expected a folder of that name, or files such "
                f"as data/{split}-00000-of-00001.parquet. It holds {held}."
            )
    listing = Listing()
    for unit in sorted(found, key=_rank):
        name = stem(PurePosixPath(unit.replace("/", "-")))
        if reason := _refused(name, listing.shards):
            listing.passed_over[unit] = reason
        else:
            listing.shards[name] = unit
    if split is None:
        listing.passed_over.update(_others(units, set(data)))
    return listing


def nothing_to_read(origin: str, passed_over: Mapping[str, str]) -> DataFileError:
    """Return the error for a folder without a shard, with what it holds."""
    held = "; ".join(f"{path}: {reason}" for path, reason in sorted(passed_over.items())[:10])
    more = f"; and {len(passed_over) - 10} more" if len(passed_over) > 10 else ""
    return DataFileError(
        f"{origin} holds no data file that can be read; expected {', '.join(SUFFIXES)}, or "
        f"folders of them. It holds {held or 'nothing'}{more}."
    )


def is_one_table(name: str, paths: Collection[str]) -> bool:
    """Whether a folder is one table in parts: Spark's, or Hive partitions.

    Args:
        name: name of the folder.
        paths: paths of the files in it.
    """
    return name in _folders_of_parts([f"{name}/{path}" for path in paths])


def parts_of(folder: Path) -> list[tuple[Path, dict[str, str | None]]]:
    """Return the files of a table in parts, each with the columns that its path names."""
    parts = []
    for path in sorted(files_below(folder, deep=True)):
        *folders, name = path.split("/")
        if name.startswith(("_", ".")) or not format_of(name):
            continue
        pairs = [step.partition("=") for step in folders if "=" in step]
        columns = {
            unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            for name, _, value in pairs
        }
        parts.append((folder / path, columns))
    return parts


def _folders_of_parts(paths: Collection[str]) -> set[str]:
    """Return the folders that are one table each: Spark's, and those of Hive partitions."""
    spark = {path.rpartition("/")[0] for path in paths if _name(path) == "_SUCCESS"}
    found = set()
    for path in paths:
        steps = path.split("/")
        if not format_of(steps[-1]):
            continue
        for depth in range(1, len(steps)):
            folder = "/".join(steps[:depth])
            partitions = "=" in steps[depth] and depth < len(steps) - 1
            if partitions or folder in spark or format_of(steps[depth - 1]):
                found.add(folder)
    return found


def _outermost(path: str, folders: Collection[str]) -> str | None:
    steps = path.split("/")
    names = ("/".join(steps[:depth]) for depth in range(1, len(steps)))
    return next((name for name in names if name in folders), None)


def _is_of_split(path: str, split: str) -> bool:
    """Whether a path names a split by its whole name: train_sft is not train."""
    *folders, last = path.split("/")
    name = stem(PurePosixPath(last))
    same = name.startswith(split) and _PART_OF_SPLIT.fullmatch(name[len(split) :])
    return split in folders or bool(same)


def unfit_name(name: str) -> str | None:
    """Return why a name cannot be a shard's (a partition and files), or None."""
    if not name.strip() or _NO_NAME.search(name):
        return "its name is empty, or has control characters or three dots; rename it"
    if any(step in ("", ".", "..") for step in name.split("/")):
        return "its name leads to another folder; rename it"
    try:
        size = max(len(step.encode()) for step in name.split("/"))
    except UnicodeEncodeError:
        return "its name is not Unicode; rename it"
    if size > MAX_NAME:
        return f"its name has {size} bytes; expected at most {MAX_NAME}. Rename it"
    return None


def _refused(name: str, shards: Mapping[str, str]) -> str | None:
    if name in shards:
        return f"{shards[name]} is the shard {name!r} already; rename one"
    return unfit_name(name)


def _others(units: Collection[str], data: Collection[str]) -> dict[str, str]:
    """Return each file that is not a shard with the reason; a whole folder is one entry."""
    passed: dict[str, str] = {}
    deeper: dict[str, int] = {}
    for unit in units:
        folder, _, inside = unit.rpartition("/")
        if inside and unit in data and folder:
            deeper[folder] = deeper.get(folder, 0) + 1
        elif not folder and unit not in data and not _BESIDE.search(unit):
            reasons = (reason for form, reason in _REASONS if re.search(f"(?i){form}", unit))
            passed[unit] = next(reasons, "no name of a data file")
    for folder, count in deeper.items():
        passed[f"{folder}/"] = (
            f"a folder with {count} data files; name it as the path, or name the split"
        )
    return passed


def _rank(path: str) -> tuple[int, str]:
    known = format_of(_name(path))
    return (FORMATS.index(known) if known else len(FORMATS), path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _name(path: str) -> str:
    return PurePosixPath(path).name
