"""The graph as a component: `valuation_definitions` with its options in a YAML file."""

# No `from __future__ import annotations` here: Dagster inspects the annotations of components.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import BaseModel, Field, InstanceOf, create_model

from forvalue_dagster.options.base import Options
from forvalue_dagster.options.selection import Attribution, Refine
from forvalue_dagster.options.warm_up import WarmUp
from forvalue_dagster.orchestration.definitions import valuation_definitions
from forvalue_dagster.orchestration.options.alerts import Alerts
from forvalue_dagster.orchestration.options.plan import Automation, Compute
from forvalue_dagster.orchestration.options.policies import (
    GatePolicy,
    SelectionPolicy,
    WarningPolicy,
)
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.options.sources import RowSource, UpstreamRows
from forvalue_dagster.orchestration.scaffolding import ForValueScaffolder
from forvalue_dagster.storage.in_yaml import InYaml
from forvalue_dagster.storage.location import Storage


def _yaml_of(options: type[Options]) -> dg.Resolver:
    """Read options from YAML; values that YAML cannot hold come from templates."""
    known: dict[str, Any] = {}
    for name, field in options.model_fields.items():
        # Dagster objects and functions: only as a template that evaluates to one.
        objects = name in ("retry_policy", "worker", "notify", "webhook")
        bounded: Any = Annotated[(field.annotation, name, *field.metadata)]
        kind = str if objects else bounded | str
        default = None if field.default_factory else field.default
        known[name] = (kind | None, Field(default=default, description=field.description))
    model: type[BaseModel] = create_model(f"{options.__name__}Model", __base__=dg.Model, **known)

    def resolve(context: dg.ResolutionContext, given: BaseModel | None) -> Options | None:
        if given is None:
            return None
        return options(**context.resolve_value(given.model_dump(exclude_unset=True)))

    return dg.Resolver(resolve, model_field_type=model | None)


def _partitions(context: dg.ResolutionContext, given: Any) -> Any:
    resolved = context.resolve_value(given)
    return dg.StaticPartitionsDefinition(resolved) if isinstance(resolved, list) else resolved


@dg.scaffold_with(ForValueScaffolder)
class ForValueComponent(dg.Component, InYaml, dg.Model):
    """Values finetuning rows by For-Value, filters them, and blocks noisy shards.

    The options are those of `forvalue_dagster.valuation_definitions`. Relative paths start at the
    project's root.
    """

    training_rows: Annotated[
        RowSource | UpstreamRows,
        Field(description="Rows to value: files, one shard each (path), or an asset (asset)."),
    ]
    validation_rows: Annotated[RowSource, Field(description="Trusted rows.")]
    storage: Annotated[Storage, Field(description="Where tables and tensors are written.")]
    valuation: Annotated[
        Valuation | None, Field(description="The model, and how rows are valued.")
    ] = None
    selection: Annotated[SelectionPolicy | None, Field(description="Which rows are kept.")] = None
    gate: Annotated[GatePolicy | None, Field(description="What blocks a shard.")] = None
    warnings: Annotated[
        WarningPolicy | None, Field(description="Thresholds of the checks that warn.")
    ] = None
    suites: Annotated[
        list[str],
        Field(description="JSON files of Great Expectations suites for raw and validation rows."),
    ] = []  # noqa: RUF012 (pydantic copies it)
    scoring: Annotated[
        Literal["features", "exact"],
        Field(description="Score from stored features, or pass rows again for a validation set."),
    ] = "features"
    refine: Annotated[
        InstanceOf[Refine] | None,
        _yaml_of(Refine),
        Field(description="Compute values near the selection's boundary exactly."),
    ] = None
    attribution: Annotated[
        InstanceOf[Attribution] | None,
        _yaml_of(Attribution),
        Field(description="Find the strongest pairs of training and validation rows."),
    ] = None
    warm_up: Annotated[
        InstanceOf[WarmUp] | None,
        _yaml_of(WarmUp),
        Field(description="Train a LoRA adapter before rows are valued."),
    ] = None
    upstream_shards: Annotated[
        Any,  # a PartitionsDefinition, which pydantic does not know, or None
        dg.Resolver(_partitions, model_field_type=list[str] | str | None),
        Field(description="Partitions of the asset with the training rows."),
    ] = None
    automation: Annotated[
        InstanceOf[Automation] | None,
        _yaml_of(Automation),
        Field(description="When to look for changes; running: false switches automation off."),
    ] = None
    compute: Annotated[
        InstanceOf[Compute] | None,
        _yaml_of(Compute),
        Field(description="Pools and tags of the steps that load the model."),
    ] = None
    alerts: Annotated[
        InstanceOf[Alerts] | None,
        _yaml_of(Alerts),
        Field(description="Alerts about blocked shards, warnings, stale data and overrides."),
    ] = None
    key_prefix: Annotated[
        list[str],
        Field(description="Prefix of every asset key; two instances in a project need two."),
    ] = []  # noqa: RUF012
    group_name: Annotated[str, Field(description="Group in the UI.")] = "forvalue"
    translation: Annotated[
        TranslationFn[str] | None,
        TranslationFnResolver[str](lambda name: {"name": name}),
        Field(description="Key and attributes of each asset; {{ name }} is the asset's own name."),
    ] = None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the graph."""
        options = {name: getattr(self, name) for name in type(self).model_fields}
        return valuation_definitions(**_from_root(options, Path(context.project_root)))


# The options that are paths, by the option that they belong to.
_PATHS: Mapping[str, Sequence[str]] = {
    "training_rows": ("path", "image_root"),
    "validation_rows": ("path", "image_root"),
    "storage": ("base_dir",),
}


def _from_root(options: dict[str, Any], root: Path) -> dict[str, Any]:
    """Make relative paths start at the project's root, wherever the process was started."""

    def at(path: Any) -> Any:
        if not isinstance(path, str) or "://" in path:
            return path
        return str(root / path)

    moved = dict(options)
    for option, names in _PATHS.items():
        paths = {n: at(getattr(options[option], n)) for n in names if hasattr(options[option], n)}
        moved[option] = options[option].model_copy(update=paths)
    return moved | {"suites": [at(path) for path in options["suites"]]}
