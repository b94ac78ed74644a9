"""Source files of rows: listing them with their states, and fetching a copy to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from dagster_aws.s3 import S3Resource
from dagster_aws.s3.sensor import get_objects
from upath import UPath

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.data.images import ImageFolder, local_images
from forvalue_dagster.data.listing import files_below
from forvalue_dagster.storage.location import shown

# Number of passed-over files that a message names.
_TOLD = 10


@dataclass(frozen=True)
class ShardFile:
    """One shard of a source.

    Attributes:
        path: path below the source's folder.
        state: a text that changes with the content (`SourceFiles.states`).
    """

    path: str
    state: str


@dataclass(frozen=True)
class Survey:
    """The shards and other files of a source.

    Attributes:
        shards: shard → file.
        passed_over: path → why it is not a shard.
    """

    shards: dict[str, ShardFile]
    passed_over: dict[str, str]

    @property
    def state(self) -> str:
        """One state for all files, which changes with any file's content."""
        return state_of({shard: file.state for shard, file in self.shards.items()})

    def __str__(self) -> str:
        """Return a text that names the passed-over files; empty without any."""
        told = [f"{path}: {reason}" for path, reason in sorted(self.passed_over.items())]
        more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        return f"Passed over: {'; '.join(told[:_TOLD])}{more}." if told else ""


class SourceFiles(Protocol):
    """A folder or prefix with source files."""

    def states(self, below: str = "", *, deep: bool = True) -> dict[str, str]:
        """Return path → state of every file, or of those at or below a path.

        A state is quick to find, and changes with the content.

        Args:
            below: a file or folder.
            deep: look into all folders (`data.listing.files_below`).

        Raises:
            DataFileError: if there is no such folder or prefix, or no access to it.
        """
        ...

    def fetch(self, path: str) -> AbstractContextManager[Path]:
        """Lend a local copy of a file or folder."""
        ...

    def leads_out(self, path: str) -> bool:
        """Whether a path leads out of the folder, or nowhere, through a link."""
        ...

    def images(self) -> ImageFolder:
        """Return this as a folder of images that rows name by path."""
        ...


def remote_images(uri: str) -> ImageFolder:
    """Return any address that fsspec reads (https://, gs://, …) as a folder of images."""
    root, place = UPath(uri), shown(uri).rstrip("/")

    def read(path: str) -> bytes | None:
        try:
            return bytes((root / path).read_bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            # Without the error's text, which may hold the address with its password.
            raise DataFileError(
                f"{place} cannot be read: {type(error).__name__}. Expected a server that answers, "
                "and a right to read."
            ) from None

    return ImageFolder(place, read)


def state_of(states: dict[str, str]) -> str:
    """Return one state for several files."""
    if len(states) == 1:
        return next(iter(states.values()))
    listing = "\n".join(f"{path} {state}" for path, state in sorted(states.items()))
    return sha256(listing.encode()).hexdigest()[:32]


def by_unit(states: dict[str, str], units: set[str]) -> dict[str, dict[str, str]]:
    """Group files, path → state, by the file or folder in `units` that they belong to."""
    found: dict[str, dict[str, str]] = {unit: {} for unit in units}
    for path, state in states.items():
        steps = path.split("/")
        for depth in range(1, len(steps) + 1):
            if (unit := "/".join(steps[:depth])) in found:
                found[unit][path] = state
    return found


@dataclass(frozen=True)
class LocalFiles:
    """A local folder.

    A file's state is its size and time of modification on the machine that holds it. Two states
    are only compared for equality, never for which is later.
    """

    root: Path

    def states(self, below: str = "", *, deep: bool = True) -> dict[str, str]:
        """Return path → state."""
        top = self._inside(below)
        if not top.exists():
            raise DataFileError(f"{top} does not exist; expected a data file or a folder of them.")
        if top.is_file():
            return {below: _state(top)}
        inside = f"{below}/" if below else ""
        paths = files_below(top, deep=deep)
        return {f"{inside}{path}": _state(top / path) for path in paths}

    @contextmanager
    def fetch(self, path: str) -> Iterator[Path]:
        """Lend the file itself."""
        yield self._inside(path)

    def leads_out(self, path: str) -> bool:
        """Whether a path leads out of the folder, or nowhere, through a link."""
        real = os.path.realpath(self.root / path)
        return not os.path.exists(real) or not real.startswith(f"{self._real_root}/")

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root).rstrip("/")

    def images(self) -> ImageFolder:
        """Return the folder as one of images."""
        return local_images(self.root)

    def _inside(self, path: str) -> Path:
        inside = self.root / path
        if path and self.leads_out(path) and os.path.lexists(inside):
            raise DataFileError(
                f"{inside} leads out of {self.root}; expected files inside it. Copy what it points "
                "to, or name its folder as the path."
            )
        return inside


def _state(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return ""  # a link that leads nowhere, or to itself
    return f"{stat.st_size}.{stat.st_mtime_ns}"


@dataclass(frozen=True)
class S3Files:
    """A prefix of a bucket; an object's state is its ETag."""

    bucket: str
    prefix: str
    s3: S3Resource

    @classmethod
    def at(cls, uri: str, s3: S3Resource | None) -> S3Files:
        """Read s3://bucket/prefix."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        return cls(bucket, prefix.rstrip("/"), s3 or S3Resource())

    def states(self, below: str = "", *, deep: bool = True) -> dict[str, str]:
        """Return path → state; `deep` has no effect: all files below a prefix are listed."""
        start = self._key(below)
        with self._clear_errors():
            objects = get_objects(self.bucket, start, client=self.s3.get_client())
        found = {}
        for entry in objects:
            key = entry["Key"]
            # The prefix a/b also lists a/bc.
            if key == start or not start or key.startswith(f"{start}/"):
                path = key.removeprefix(self.prefix).lstrip("/")
                if path and not path.endswith("/"):
                    found[path] = str(entry["ETag"]).strip('"')
        if below and not found:
            raise DataFileError(f"s3://{self.bucket}/{start} does not exist; expected a data file.")
        return found

    @contextmanager
    def fetch(self, path: str) -> Iterator[Path]:
        """Lend a copy in a temporary folder; large objects come in parallel ranges."""
        client = self.s3.get_client()
        with TemporaryDirectory() as scratch:
            target = Path(scratch).resolve() / Path(path).name
            for inside in self.states(path):
                rest = inside.removeprefix(path).lstrip("/")
                file = target / rest if rest else target
                if not file.resolve().is_relative_to(scratch):
                    raise DataFileError(f"s3://{self.bucket}/{inside} leads out of its folder.")
                file.parent.mkdir(parents=True, exist_ok=True)
                with self._clear_errors():
                    client.download_file(self.bucket, self._key(inside), str(file))
            yield target

    def leads_out(self, path: str) -> bool:
        """Return False: there are no links."""
        return False

    def images(self) -> ImageFolder:
        """Return the prefix as a folder of images."""
        client = self.s3.get_client()

        def read(path: str) -> bytes | None:
            with self._clear_errors():
                try:
                    answer = client.get_object(Bucket=self.bucket, Key=self._key(path))
                except client.exceptions.NoSuchKey:
                    return None
                return bytes(answer["Body"].read())

        return ImageFolder(f"s3://{self._root}", read)

    @property
    def _root(self) -> str:
        return f"{self.bucket}/{self.prefix}".rstrip("/")

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn boto's errors, after its retries, into clear ones."""
        from boto3.exceptions import S3TransferFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"s3://{self.bucket}/{self.prefix}"
        try:
            yield
        except (BotoCoreError, ClientError, S3TransferFailedError) as error:
            raise DataFileError(
                f"{where} cannot be read: {error}. Tried {self.s3.max_attempts} times; expected a "
                "bucket that exists, credentials that may list and read it, and a server that "
                "answers."
            ) from error
