"""The asset `valuation_model`: an adapter trained by the graph, only on request.

The asset depends on no other, although it reads rows: a model that changed with every new shard
would make all features stale. Instead it records the rows it was trained on.
"""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import json
from hashlib import sha256

import dagster as dg

from forvalue_dagster.orchestration.automation.conditions import when_configured_anew
from forvalue_dagster.orchestration.naming import Naming, code_version
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.options.sources import RowSource
from forvalue_dagster.orchestration.trained_adapter import ADAPTER_FILES, adapter_pointer
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.location import Storage


def build_model_asset(naming: Naming, plan: Plan) -> dg.AssetsDefinition:
    """Build `valuation_model`, for a plan with a warm-up."""
    warm_up = plan.warm_up
    if warm_up is None:
        raise ValueError("The plan has no warm-up, so there is no model to train.")
    settings = warm_up.model_dump()
    configuration = json.dumps(settings, sort_keys=True)

    @dg.asset(
        key=naming.key("valuation_model"),
        group_name=naming.group,
        kinds={"torch", "huggingface"},
        code_version=code_version(settings),
        automation_condition=when_configured_anew(),
        description="A LoRA adapter that adapts the base model to the task before rows are valued. "
        "It is trained again only on request.",
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
        digest = fingerprint_files(adapter / name for name in ADAPTER_FILES)
        pointer = adapter_pointer(naming, storage)
        for name in ADAPTER_FILES:
            with atomic_write(pointer.parent / pointer.stem / digest / name) as stream:
                stream.write((adapter / name).read_bytes())
        trained_on = rows[used]["sample_id"].to_list()
        record = {"adapter": digest, "base": valuation.name, "sample_ids": trained_on}
        with atomic_write(pointer) as stream:
            stream.write(json.dumps(record | settings, indent=2).encode())
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest),
            metadata={
                "adapter": digest,
                "rows": len(trained_on),
                "configuration": dg.MetadataValue.json(settings),
                "record": dg.MetadataValue.path(str(pointer)),
            },
        )

    return valuation_model
