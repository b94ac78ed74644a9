"""The valuation model, when it is warmed up here: an adapter that stays until someone asks.

The asset depends on no other, although it reads rows: a model that changed with every new shard
would make all features stale. It records which rows it was trained on instead.
"""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import dagster as dg
from upath import UPath

from forvalue_dagster.orchestration.automation import when_configured_anew
from forvalue_dagster.orchestration.naming import MODEL_FILES, Naming, code_version
from forvalue_dagster.orchestration.plan import Plan
from forvalue_dagster.orchestration.resources import Valuation
from forvalue_dagster.orchestration.sources import RowSource
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.location import Storage

_FILES = ("adapter_config.json", "adapter_model.safetensors")


def model_dependency(naming: Naming, plan: Plan) -> list[dg.AssetKey]:
    """Return what the steps with a model depend on beside their rows."""
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
    for name in _FILES:
        if not (local / name).exists():
            local.mkdir(parents=True, exist_ok=True)
            with atomic_write(UPath(local / name)) as stream:
                stream.write((pointer.parent / pointer.stem / digest / name).read_bytes())
    return local


def build_model_asset(naming: Naming, plan: Plan) -> dg.AssetsDefinition:
    """Build `valuation_model`, for a plan with a warm-up."""
    warm_up = plan.warm_up
    if warm_up is None:
        raise ValueError("The plan has no warm-up, so there is no model to train.")
    configuration = json.dumps(asdict(warm_up), sort_keys=True)

    @dg.asset(
        key=naming.key("valuation_model"),
        group_name=naming.group,
        kinds={"torch", "huggingface"},
        code_version=code_version(asdict(warm_up)),
        automation_condition=when_configured_anew(),
        description="A LoRA adapter that adapts the base model to the task before anything is "
        "valued. Pinned: it is trained again only when asked for.",
        pool=plan.compute.pool_of("valuation_model"),
        op_tags=plan.compute.tags("valuation_model"),
        retry_policy=plan.compute.retry_policy,
    )
    @naming.own
    def valuation_model(
        context: dg.AssetExecutionContext,
        training_rows: RowSource,
        validation_rows: RowSource,
        valuation: Valuation,
        storage: Storage,
    ) -> dg.MaterializeResult[None]:
        from forvalue_dagster.models.embedded import cache_root
        from forvalue_dagster.models.fingerprint import fingerprint_files
        from forvalue_dagster.models.warm_up import train_adapter

        rows = (training_rows if warm_up.rows == "training" else validation_rows).read()
        content = rows.select("messages", "tools", "problem").write_ndjson()
        identity = "\n".join([configuration, repr(valuation.config()), valuation.tokens, content])
        workspace = cache_root() / "warm_up" / sha256(identity.encode()).hexdigest()[:16]
        adapter, used = train_adapter(
            valuation.config(), rows, valuation.tokens, warm_up, workspace, context.log.info
        )
        digest = fingerprint_files(adapter / name for name in _FILES)
        pointer = adapter_pointer(naming, storage)
        for name in _FILES:
            with atomic_write(pointer.parent / pointer.stem / digest / name) as stream:
                stream.write((adapter / name).read_bytes())
        trained_on = rows[used]["sample_id"].to_list()
        record = {"adapter": digest, "base": valuation.name, "sample_ids": trained_on}
        with atomic_write(pointer) as stream:
            stream.write(json.dumps(record | asdict(warm_up), indent=2).encode())
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest),
            metadata={
                "adapter": digest,
                "rows": len(trained_on),
                "configuration": dg.MetadataValue.json(asdict(warm_up)),
                "record": dg.MetadataValue.path(str(pointer)),
            },
        )

    return valuation_model


def adapter_pointer(naming: Naming, storage: Storage) -> UPath:
    """Return the file that names the adapter in force."""
    return storage.path(*naming.key("valuation_model").path).with_suffix(".json")
