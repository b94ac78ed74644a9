"""The location of the graph's files: a local folder, or a prefix of an object store."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import dagster as dg
from dagster_aws.s3 import S3Resource
from pydantic import Field, field_validator
from upath import UPath

from forvalue_dagster.storage.in_yaml import InYaml


class Storage(
    dg.ConfigurableResource["Storage"], InYaml, extra="forbid", hide_input_in_errors=True
):
    """The location of the graph's files.

    For s3://, credentials are found in the usual way (environment, profile, role of the machine),
    unless `s3` has its own; `s3` can also name an endpoint or a region.
    """

    base_dir: str = Field(description="Folder or object-store prefix, such as s3://bucket/prefix.")
    s3: S3Resource | None = Field(
        default=None,
        description="Endpoint, region, profile and retries of s3://, and keys (as EnvVar) if the "
        "usual credentials do not work.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of universal-pathlib for other object stores."
    )

    @field_validator("base_dir")
    @classmethod
    def without_credentials(cls, value: str) -> str:
        """Check that the address has no user or password, which paths would show everywhere."""
        if shown(value) != value:
            raise ValueError(
                "base_dir holds a user or a password, which would be shown in errors and in the "
                "event log; expected an address without, and credentials by the ordinary chain or "
                "as an EnvVar of a resource"
            )
        return value

    def options(self) -> dict[str, Any]:
        """Return the options of the file system, as fsspec names them."""
        return (s3_options(self.s3) if self.s3 is not None else {}) | self.storage_options

    def path(self, *parts: str) -> UPath:
        """Return a path below the base folder."""
        path: UPath = UPath(self.base_dir, **self.options()).joinpath(*parts)
        return path


def partition_name(partition: str) -> str:
    """Return the name of a partition's files, which never leads to another folder."""
    steps = partition.split("/")
    return quote(partition, safe="") if any(s in ("", ".", "..") for s in steps) else partition


def s3_options(s3: S3Resource) -> dict[str, Any]:
    """Translate a dagster-aws resource into the options of s3fs.

    After server errors and time-outs it tries again with growing pauses, `max_attempts` times.
    """
    client = {
        "endpoint_url": s3.endpoint_url,
        "region_name": s3.region_name,
        "use_ssl": None if s3.use_ssl else False,
        "verify": s3.verify,
    }
    options = {
        "anon": s3.use_unsigned_session or None,
        "profile": s3.profile_name,
        "key": s3.aws_access_key_id,
        "secret": s3.aws_secret_access_key,
        "token": s3.aws_session_token,
        "client_kwargs": {name: value for name, value in client.items() if value is not None},
        "config_kwargs": {"retries": {"max_attempts": s3.max_attempts, "mode": "standard"}},
    }
    return {name: value for name, value in options.items() if value}


def shown(address: str) -> str:
    """Return an address to show, without user and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", address)
