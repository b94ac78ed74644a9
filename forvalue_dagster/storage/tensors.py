"""Tensors as safetensors files: numbers and plain metadata, nothing executable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
from pydantic import PrivateAttr
from upath import UPath

from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.in_force import FILE_DIGEST, ReadsInForce
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.seal import TENSOR_ENTRY, UNSEALED, check_tensors, seal_tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorFile:
    """Named tensors with plain (JSON) metadata.

    Attributes:
        tensors: name → tensor, on any device.
        metadata: any JSON value.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class TensorIOManager(dg.ConfigurableIOManager, ReadsInForce):
    """Reads and writes `TensorFile` below the storage's folder; a file is replaced whole."""

    storage: Storage
    _base_path: UPath = PrivateAttr()
    extension: ClassVar[str | None] = ".safetensors"  # type: ignore[misc]

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Resolve the base folder."""
        self._base_path = self.storage.path()

    def checked_digest(self, path: UPath) -> str:
        """Return a file's SHA-256."""
        return check_tensor_file(path)

    def dump_to_path(self, context: dg.OutputContext, obj: TensorFile, path: UPath) -> None:
        """Write the tensors."""
        context.add_output_metadata({FILE_DIGEST: write_tensors(path, obj)})

    def load_from_path(self, context: dg.InputContext, path: UPath) -> TensorFile:
        """Read the tensors; a local file is mapped, not copied."""
        return load_tensors(path, checked=True)


def write_tensors(path: UPath, obj: TensorFile) -> str:
    """Replace a file of tensors whole, and return its SHA-256."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in obj.tensors.items()}
    metadata = {TENSOR_ENTRY: UNSEALED + json.dumps(obj.metadata, sort_keys=True)}
    content, digest = seal_tensors(save(tensors, metadata))
    with atomic_write(path) as stream:
        stream.write(content)
    return digest


def check_tensor_file(path: UPath) -> str:
    """Check the seal of a file of tensors, and return its SHA-256; else DamagedFileError."""
    with path.open("rb") as stream:
        return check_tensors(stream, str(path))


def load_tensors(path: UPath, *, checked: bool = False) -> TensorFile:
    """Read one file of tensors.

    Args:
        path: the file.
        checked: whether its seal has just been checked; a local file is then not read again.

    Raises:
        DamagedFileError: if it differs from what was written.
    """
    from safetensors import safe_open
    from safetensors.torch import load

    if path.protocol in ("", "file", "local"):
        if not checked:
            check_tensor_file(path)
        with safe_open(path.path, framework="pt") as file:
            metadata = _metadata(file.metadata() or {})
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
    content = path.read_bytes()
    check_tensors(BytesIO(content), str(path))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return TensorFile(load(content), _metadata(header.get("__metadata__", {})))


def _metadata(header: Mapping[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads(header[TENSOR_ENTRY][len(UNSEALED) :])
    return metadata
