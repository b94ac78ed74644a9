"""The warm-up's adapter: finding it, and depending on it, for every step with a model."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
from upath import UPath

from forvalue_dagster.orchestration.naming import MODEL_FILES, Naming
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.location import Storage

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def model_dependency(naming: Naming, plan: Plan) -> list[dg.AssetKey]:
    """Return the further assets that steps with a model depend on."""
    trained = [naming.key("valuation_model")] if plan.warm_up is not None else []
    return trained + ([naming.key(MODEL_FILES)] if plan.watches_model else [])


def trained_adapter(naming: Naming, plan: Plan, storage: Storage) -> Path | None:
    """Return a local folder with the adapter that `valuation_model` trained, if there is one.

    Raises:
        dagster.Failure: if it has not been trained yet.
    """
    return None if plan.warm_up is None else fetch_adapter(adapter_pointer(naming, storage))


def fetch_adapter(pointer: UPath) -> Path:
    """Return a local folder with the adapter that a pointer names.

    Raises:
        dagster.Failure: if it has not been trained yet.
    """
    from forvalue_dagster.models.embedded import cache_root

    if not pointer.exists():
        raise dg.Failure(
            f"A warm-up is configured, but {pointer} is absent. Materialise valuation_model first.",
            allow_retries=False,
        )
    digest = json.loads(pointer.read_text("utf-8"))["adapter"]
    local: Path = cache_root() / "adapters" / str(digest)
    for name in ADAPTER_FILES:
        if not (local / name).exists():
            local.mkdir(parents=True, exist_ok=True)
            with atomic_write(UPath(local / name)) as stream:
                stream.write((pointer.parent / pointer.stem / digest / name).read_bytes())
    return local


def adapter_pointer(naming: Naming, storage: Storage) -> UPath:
    """Return the file that names the latest adapter."""
    return storage.path(*naming.key("valuation_model").path).with_suffix(".json")
