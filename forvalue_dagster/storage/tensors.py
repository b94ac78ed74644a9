"""Tensors as safetensors: numbers and plain metadata, nothing that could be executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
from pydantic import PrivateAttr
from upath import UPath

from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.location import Storage

if TYPE_CHECKING:
    from torch import Tensor

_METADATA_KEY = "forvalue_dagster"


@dataclass(frozen=True)
class TensorFile:
    """Named tensors with plain (JSON) metadata.

    Attributes:
        tensors: name → tensor, on any device.
        metadata: anything JSON can hold.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class TensorIOManager(dg.ConfigurableIOManager, dg.UPathIOManager):
    """Reads and writes `TensorFile` below the storage's folder, replaced whole."""

    storage: Storage
    _base_path: UPath = PrivateAttr()
    extension: ClassVar[str | None] = ".safetensors"  # type: ignore[misc]

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Resolve the base folder."""
        self._base_path = self.storage.path()

    def dump_to_path(self, context: dg.OutputContext, obj: TensorFile, path: UPath) -> None:
        """Write the tensors."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in obj.tensors.items()}
        metadata = {_METADATA_KEY: json.dumps(obj.metadata, sort_keys=True)}
        with atomic_write(path) as stream:
            stream.write(save(tensors, metadata))

    def load_from_path(self, context: dg.InputContext, path: UPath) -> TensorFile:
        """Read the tensors; a local file is mapped, not copied."""
        return load_tensors(path)


def load_tensors(path: UPath) -> TensorFile:
    """Read one file of tensors."""
    from safetensors import safe_open
    from safetensors.torch import load

    if path.protocol in ("", "file", "local"):
        with safe_open(path.path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get(_METADATA_KEY, "{}")
    return TensorFile(load(content), json.loads(text))
