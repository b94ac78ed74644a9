"""The gate in front of a consumer: one line that holds in every run, whoever starts it.

gate = require_certified(context)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

from forvalue_dagster.quality.manifest import CERTIFIED, MANIFEST, Manifest
from forvalue_dagster.quality.standing import (
    Materialization,
    check_standing,
    latest_materialization,
)

Context = dg.AssetExecutionContext | dg.OpExecutionContext
_BUILT_FROM = "dagster/input_event_pointer/"


@dataclass(frozen=True)
class GateReport:
    """What the gate let through.

    Attributes:
        dataset: the asset that is read.
        storage_id: of its materialisation in the event log.
        run_id: the run that made it.
        manifest: what it is made of; None if it has none and was forced.
        warnings: what was found and let through.
        forced: the reason of a deliberate override, None without one.
    """

    dataset: dg.AssetKey
    storage_id: int
    run_id: str
    manifest: Manifest | None
    warnings: tuple[str, ...] = ()
    forced: str | None = None


def require_certified(
    context: Context,
    dataset: dg.AssetKey | str | Sequence[str] = "filtered_dataset",
    *,
    checks: Sequence[str] = (),
    stale: Literal["fail", "warn"] = "fail",
    force: str | None = None,
) -> GateReport:
    """Let an asset or op read a filtered dataset only if it is certified for what is read.

    Looked up in the event log at the moment of the call: the check `certified` passed for the
    dataset's materialisation in force; its manifest has nothing against it; no shard in it was
    made again or withdrawn since; what lies between the dataset and the caller was made from this
    materialisation; and every further check that is named passed for it.

    Args:
        context: of the asset or op that is about to read.
        dataset: key of the filtered dataset.
        checks: names of further checks of the dataset that must have passed.
        stale: whether a shard that was made again after the dataset was built fails or warns; one
            that was withdrawn always fails.
        force: go on whatever was found, for this reason, which is written to the log and to the
            metadata of the caller's outputs.

    Raises:
        dagster.Failure: not to be retried; naming shard, check, figure and threshold.
        ValueError: if `force` is an empty reason.
    """
    if force is not None and not force.strip():
        raise ValueError("force needs a reason, which is written to the metadata; got none.")
    key = dg.AssetKey.from_coercible(dataset)
    name = key.to_user_string()
    materialization = latest_materialization(context.instance, key)
    if materialization is None:
        # Nothing to read, so nothing to force either.
        raise dg.Failure(
            f"{name} was never materialised on this instance, so nothing certifies what is about "
            "to be read. Materialise it first.",
            allow_retries=False,
        )
    objections, warnings = [], []
    for check in (CERTIFIED, *checks):
        standing = check_standing(context.instance, dg.AssetCheckKey(key, check), materialization)
        if not standing.holds:
            objections.append(standing.summary)
        elif standing.outcome == "warned":
            warnings.append(standing.summary)
    manifest = _manifest(materialization)
    if manifest is None:
        objections.append(f"{name} carries no manifest; it was not made by the valuation graph")
    else:
        objections += manifest.objections()
        for finding in manifest.outdated(context.instance):
            lenient = stale == "warn" and "withdrawn" not in finding
            (warnings if lenient else objections).append(finding)
    objections += _built_from_older(context, key, materialization)
    report = GateReport(
        key, materialization.storage_id, materialization.run_id, manifest, tuple(warnings)
    )
    for warning in warnings:
        context.log.warning(f"Gate of {name}: {warning}.")
    if not objections:
        _record(context, {"gate": f"{name} is certified (run {materialization.run_id})"})
        return report
    listing = "; ".join(dict.fromkeys(objections))
    if force is None:
        raise dg.Failure(
            f"Gate: {name} must not be read: {listing}. Mend the data and materialise {name} "
            "again, or pass force= with a reason.",
            metadata={"dataset": name, "objections": _table(objections)},
            allow_retries=False,
        )
    context.log.warning(f"Gate of {name} overridden: {force}. It would have stopped: {listing}.")
    _record(
        context,
        {"gate": "overridden", "gate_forced_because": force, "gate_objections": _table(objections)},
    )
    return GateReport(
        key,
        materialization.storage_id,
        materialization.run_id,
        manifest,
        (*warnings, *objections),
        force,
    )


def _manifest(materialization: Materialization) -> Manifest | None:
    stored = materialization.metadata.get(MANIFEST)
    return Manifest.from_json(stored.data) if isinstance(stored, dg.JsonMetadataValue) else None  # type: ignore[arg-type]


def _built_from_older(
    context: Context, dataset: dg.AssetKey, materialization: Materialization
) -> Iterator[str]:
    """Yield each asset between the dataset and the caller that was made from an older dataset.

    Dagster tags a materialisation with those it was made from; so the way up needs no graph.
    """
    if not isinstance(context, dg.AssetExecutionContext):
        return
    waiting = [parent for deps in context.assets_def.asset_deps.values() for parent in deps]
    seen = {dataset, *context.assets_def.keys}
    while waiting:
        key = waiting.pop()
        if key in seen:
            continue
        seen.add(key)
        made = latest_materialization(context.instance, key)
        for tag, pointer in made.tags.items() if made else ():
            if not tag.startswith(_BUILT_FROM):
                continue
            parent = dg.AssetKey.from_user_string(tag.removeprefix(_BUILT_FROM))
            if parent != dataset:
                waiting.append(parent)
            elif pointer == "NULL" or int(pointer) < materialization.storage_id:
                yield (
                    f"{key.to_user_string()} was made from an older materialisation of "
                    f"{dataset.to_user_string()}; materialise it again"
                )


def _record(context: Context, metadata: dict[str, Any]) -> None:
    """Write to every output of the caller."""
    chosen = (
        context.selected_output_names
        if isinstance(context, dg.AssetExecutionContext)
        else [output.name for output in context.op_def.output_defs]
    )
    for name in chosen:
        context.add_output_metadata(metadata, output_name=name)


def _table(findings: Sequence[str]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord({"objection": text}) for text in findings])
