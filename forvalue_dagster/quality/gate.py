"""The gate in front of a consumer: one line that works in every run, whoever starts it.

gate = require_certified(context)
rows = gate.read()

The rule: the rows that are read are, byte for byte, the certified ones. Everything the dataset was
made from, and everything made from it on the way to the caller, is still the latest. Whoever waives
any of this must give a reason, which is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import dagster as dg
import polars as pl
from upath import UPath

from forvalue_dagster.quality.certificate import CertificateError, certified_copy
from forvalue_dagster.quality.lineage import Ancestry, changed_above
from forvalue_dagster.quality.manifest import CERTIFIED, MANIFEST, MadeFrom, Manifest
from forvalue_dagster.quality.standing import (
    FORCED_BECAUSE,
    Materialization,
    check_standing,
    latest_materialization,
)

Context = dg.AssetExecutionContext | dg.OpExecutionContext | dg.AssetCheckExecutionContext
Leniency = Literal["fail", "warn"]


@dataclass(frozen=True)
class GateReport:
    """What the gate found, and the dataset to read.

    Attributes:
        dataset: the asset that is read.
        storage_id: id of its materialisation in the event log.
        run_id: the run that made it.
        manifest: its manifest; None if it has none and the gate was forced.
        warnings: problems that were let through.
        forced: the reason of a deliberate override, or None.
        path: path of the rows; None if the event log does not say.
    """

    dataset: dg.AssetKey
    storage_id: int
    run_id: str
    manifest: Manifest | None
    warnings: tuple[str, ...] = ()
    forced: str | None = None
    path: str | None = None

    def read(self, **storage_options: Any) -> pl.LazyFrame:
        """Return the certified rows, even if the file changes while they are read.

        They are copied to a temporary file, whose digest is compared with the certificate's; later
        reads use the copy.

        Args:
            storage_options: options of the file system, as fsspec names them (`Storage.options()`);
                by default the ordinary chain of credentials.

        Raises:
            dagster.Failure: if the file is not the certified one.
        """
        digests = self.manifest.files if self.manifest is not None else {}
        path = None if self.path is None else UPath(self.path, **storage_options)
        if path is None or path.name not in digests:
            raise dg.Failure(
                f"The certificate of {self.dataset.to_user_string()} has no digest of its rows, so "
                "nothing proves which they are. Materialise it again.",
                allow_retries=False,
            )
        try:
            return pl.scan_parquet(certified_copy(path, {digests[path.name]}))
        except CertificateError as error:
            raise dg.Failure(str(error), allow_retries=False) from None


@dataclass
class _Findings:
    objections: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, finding: str, leniency: Leniency = "fail") -> None:
        (self.warnings if leniency == "warn" else self.objections).append(finding)


def require_certified(
    context: Context,
    dataset: dg.AssetKey | str | Sequence[str] | None = None,
    *,
    checks: Sequence[str] = (),
    stale: Leniency = "fail",
    provenance: Leniency = "fail",
    force: str | None = None,
) -> GateReport:
    """Let an asset, op or check read a filtered dataset only if its latest state is certified.

    The event log is read at the moment of the call. The check `certified` must have passed for the
    dataset's latest materialisation, and its manifest must have no objection. Everything it was
    made from (rows, scores, profile, validation rows, their files as far as a sensor reported
    them, the policy) must still be the latest. Assets between the dataset and the caller must be
    made from this materialisation. Further named checks must have passed for it.

    Args:
        context: context of the asset, op or check that is about to read.
        dataset: key of the filtered dataset; by default the one that the caller is made from.
        checks: names of further checks of the dataset that must have passed.
        stale: "fail" or "warn" if something that the dataset was made from has changed since;
            a withdrawn shard always fails.
        provenance: "fail" or "warn" if an asset between the dataset and the caller does not say
            what it was made from.
        force: reason to continue whatever was found; it is written to the log and to the metadata
            of the caller's outputs.

    Raises:
        dagster.Failure: if the dataset is not certified, without retries; the message names shard,
            check, figure and threshold.
        ValueError: if `force` is an empty reason.
    """
    if force is not None and not force.strip():
        raise ValueError("force needs a reason, which is written to the metadata; got none.")
    ancestry = Ancestry(context)
    key = _dataset_of(ancestry) if dataset is None else dg.AssetKey.from_coercible(dataset)
    name = key.to_user_string()
    materialization = latest_materialization(context.instance, key)
    if materialization is None:
        # There is nothing to read, so `force` does not help.
        raise dg.Failure(
            f"{name} was never materialised on this instance, so nothing certifies what is about "
            "to be read. Materialise it first.",
            allow_retries=False,
        )
    found = _Findings()
    for check in (CERTIFIED, *checks):
        standing = check_standing(context.instance, dg.AssetCheckKey(key, check), materialization)
        if not standing.holds:
            found.add(standing.summary)
        elif standing.outcome == "warned":
            found.add(standing.summary, "warn")
    manifest = _manifest(materialization)
    if manifest is None:
        found.add(f"{name} carries no manifest of this version; make it by the valuation graph")
    else:
        for objection in manifest.objections():
            found.add(objection)
        for finding in _stale(ancestry, key, materialization, manifest):
            found.add(finding, "fail" if "withdrawn" in finding else stale)
        if manifest.overrides_allowed:
            found.warnings += manifest.overridden
    for finding, unknown in ancestry.behind(key):
        found.add(finding, provenance if unknown else "fail")
    path = materialization.metadata.get("path")
    report = GateReport(
        key,
        materialization.storage_id,
        materialization.run_id,
        manifest,
        (*found.warnings, *found.objections),
        force if found.objections else None,
        None if path is None else str(path.value),
    )
    _let_through(context, report, found, force)
    return report


def _let_through(context: Context, report: GateReport, found: _Findings, force: str | None) -> None:
    """Record what was found, or fail."""
    name = report.dataset.to_user_string()
    for warning in found.warnings:
        context.log.warning(f"Gate of {name}: {warning}.")
    noted = {"gate_warnings": _table(found.warnings)} if found.warnings else {}
    if not found.objections:
        _record(context, {"gate": f"{name} is certified (run {report.run_id})", **noted})
        return
    listing = "; ".join(dict.fromkeys(found.objections))
    if force is None:
        raise dg.Failure(
            f"Gate: {name} must not be read: {listing}. Mend the data and materialise {name} "
            "again, or pass force= with a reason.",
            metadata={"dataset": name, "objections": _table(found.objections)},
            allow_retries=False,
        )
    context.log.warning(f"Gate of {name} overridden: {force}. It would have stopped: {listing}.")
    _record(
        context,
        {
            "gate": "overridden",
            FORCED_BECAUSE: force,
            "gate_objections": _table(found.objections),
            **noted,
        },
    )
    # Also on the dataset's own page, where people look for it; an op's outputs have no page.
    op: Any = getattr(context, "op_execution_context", context)
    op.log_event(
        dg.AssetObservation(
            report.dataset, metadata={FORCED_BECAUSE: force, "run": context.run.run_id}
        )
    )


def _dataset_of(ancestry: Ancestry) -> dg.AssetKey:
    """Return the one dataset that the caller is made from, or the project's only one."""
    found = ancestry.datasets()
    if not found and not ancestry.is_asset:
        # An op has no upstream assets, so the only dataset of its project is meant.
        found = ancestry.certified_assets() or [dg.AssetKey("filtered_dataset")]
    if len(found) == 1:
        return found[0]
    named = ", ".join(key.to_user_string() for key in found)
    raise dg.Failure(
        (f"Several filtered datasets could be meant: {named}. " if found else "")
        + ("" if found else "The caller is made from no filtered dataset. ")
        + "Name the one that is about to be read: require_certified(context, 'its/key').",
        allow_retries=False,
    )


def _manifest(materialization: Materialization) -> Manifest | None:
    stored = materialization.metadata.get(MANIFEST)
    if not isinstance(stored, dg.JsonMetadataValue):
        return None
    try:
        return Manifest.from_json(stored.data)  # type: ignore[arg-type]
    except (KeyError, TypeError):
        return None


def _stale(
    ancestry: Ancestry, key: dg.AssetKey, materialization: Materialization, manifest: Manifest
) -> Iterator[str]:
    """Yield everything that the certificate depends on and that has changed since."""
    yield from manifest.outdated(ancestry.instance)
    yield from changed_above(ancestry.instance, manifest.made_from)
    made_from = [(key.to_user_string(), MadeFrom.of(materialization))]
    for entry in manifest.shards:
        made_from += entry.made_from.items() if entry.passed else ()
    made_from += manifest.made_from.items()
    for name in ancestry.configured_anew({(name, made.code_version) for name, made in made_from}):
        yield (
            f"the configuration of {name} (its policy, settings or code) has changed since it was "
            "made"
        )


def _record(context: Context, metadata: dict[str, Any]) -> None:
    """Add metadata to every output of the caller; a check has none before its result."""
    if isinstance(context, dg.AssetCheckExecutionContext):
        context.log.info(f"Gate: {metadata['gate']}.")
        return
    chosen = (
        set(context.selected_output_names)
        if isinstance(context, dg.AssetExecutionContext)
        else {output.name for output in context.op_def.output_defs}
    )
    for output in context.op_def.output_defs:
        # The keys of a dynamic output are not known yet.
        if output.name in chosen and not output.is_dynamic:
            context.add_output_metadata(metadata, output_name=output.name)


def _table(findings: Sequence[str]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord({"objection": text}) for text in findings])
