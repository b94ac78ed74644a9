"""Names, partitions and code versions of the graph's assets, jobs and sensors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from typing import Any, get_type_hints

import dagster as dg

# Increased when the meaning of a stored table changes: it is then made again.
CODE_VERSION = "6"
# Files outside Dagster, whose changes sensors report.
TRAINING_FILES, TRAINING_SHARDS = "training_files", "training_shards"
VALIDATION_FILES, MODEL_FILES = "validation_files", "model_files"
# The blocking checks of a shard.
ROW_EXPECTATIONS = "row_expectations"
ROW_CONSERVATION = "row_conservation"
LEAKAGE = "validation_leakage"
NOISE_FRACTION = "noise_fraction"
# Asset → its blocking checks, except the noise gate, which is computed again from stored scores.
BLOCKING_CHECKS = {
    "raw_finetuning_data": (ROW_EXPECTATIONS,),
    "value_scores": (ROW_CONSERVATION, LEAKAGE),
}
BLOCKING = frozenset(
    {NOISE_FRACTION, *(check for checks in BLOCKING_CHECKS.values() for check in checks)}
)


def code_version(*settings: object) -> str:
    """Return the code version of an asset whose content also depends on settings.

    Dagster compares only code versions: so a changed setting rebuilds whatever depends on it.
    """
    plain = json.dumps(settings, sort_keys=True, default=str)
    return f"{CODE_VERSION}-{sha256(plain.encode()).hexdigest()[:8]}"


def resolved(
    resource: dg.ConfigurableResource[Any], *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a resource's settings as plain values, with environment variables looked up."""
    settings = {name: getattr(resource, name) for name in type(resource).model_fields}
    return {
        name: value.get_value() if isinstance(value, dg.EnvVar) else value
        for name, value in settings.items()
        if name not in without
    }


def overrides(
    defined: Mapping[str, dg.ConfigurableResource[Any]],
    in_run: Mapping[str, dg.ConfigurableResource[Any]],
) -> dict[str, dict[str, Any]]:
    """Return setting → its values in "definition" and "run", for settings that the run changed.

    Args:
        defined: name → resource in the definition.
        in_run: name → resource in the run.
    """
    changed: dict[str, dict[str, Any]] = {}
    for name, resource in in_run.items():
        without = ("override_reason", "s3", "storage_options")
        said = resolved(defined[name], without=without)
        for field, value in resolved(resource, without=without).items():
            if value != said[field]:
                changed[f"{name}.{field}"] = {"definition": said[field], "run": value}
    return changed


# (spec, the asset's name in this graph) → the spec with the user's changes.
Translation = Callable[[dg.AssetSpec, str], dg.AssetSpec]
# Every asset that a graph can have.
ASSETS = (
    *(TRAINING_FILES, TRAINING_SHARDS, VALIDATION_FILES, MODEL_FILES),
    *("raw_finetuning_data", "validation_data", "valuation_model", "validation_profile"),
    *("sample_features", "value_scores", "training_attribution", "validation_attribution"),
    *("filtered_dataset", "dropped_rows"),
)


@dataclass(frozen=True)
class Naming:
    """Names of one instance of the graph; two instances differ in the prefix.

    Attributes:
        prefix: prefix of every asset key, and of names of jobs, sensors and partitions.
        group: the group in the UI.
        upstream_shards: partitions of the asset with the rows; None if the rows are in files.
        translation: function that changes an asset's key and attributes; None leaves them.
    """

    prefix: Sequence[str] = ()
    group: str = "forvalue"
    upstream_shards: dg.PartitionsDefinition[str] | None = None
    translation: Translation | None = None

    @property
    def shards(self) -> dg.PartitionsDefinition[str]:
        """The shards of raw data, one partition each."""
        return self.upstream_shards or dg.DynamicPartitionsDefinition(name=self.name("shards"))

    @property
    def dynamic_shards(self) -> str | None:
        """The name of the shards' dynamic partitions; None if they are of another kind."""
        shards = self.shards
        return shards.name if isinstance(shards, dg.DynamicPartitionsDefinition) else None

    def registered(self, instance: dg.DagsterInstance) -> list[str]:
        """Return the registered shards."""
        return list(self.shards.get_partition_keys(dynamic_partitions_store=instance))

    def key(self, name: str) -> dg.AssetKey:
        """Return the key of an asset."""
        spec = dg.AssetSpec(dg.AssetKey([*self.prefix, name]))
        return spec.key if self.translation is None else self.translation(spec, name).key

    def translated(self, definitions: dg.Definitions, names: Sequence[str]) -> dg.Definitions:
        """Apply the user's translation to the assets."""
        if self.translation is None:
            return definitions
        known = {self.key(name): name for name in names}
        translate = self.translation

        def attributes(spec: dg.AssetSpec) -> dg.AssetSpec:
            name = known.get(spec.key)
            return spec if name is None else translate(spec, name).replace_attributes(key=spec.key)

        return definitions.map_asset_specs(func=attributes)

    @property
    def files(self) -> dg.AssetSelection:
        """The files outside Dagster; a sensor may never have reported them."""
        names = (TRAINING_FILES, TRAINING_SHARDS, VALIDATION_FILES, MODEL_FILES)
        return dg.AssetSelection.assets(*map(self.key, names))

    @property
    def shared(self) -> dg.AssetSelection:
        """The assets that every shard is valued with."""
        names = ("validation_data", "validation_profile")
        return dg.AssetSelection.assets(*map(self.key, names))

    def name(self, name: str) -> str:
        """Return the name of a job, a sensor or a set of partitions."""
        return "_".join([*self.prefix, "forvalue", name])

    def resource(self, name: str) -> str:
        """Return the key of a resource: each instance in a project has its own resources."""
        return "_".join([*self.prefix, name])

    def own(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function of an asset, check, op or sensor this instance's resources.

        Dagster finds a resource by the name of the parameter that is annotated with it. Here
        Dagster sees the names from `resource`, and the function keeps its own names.
        """
        hints = get_type_hints(function)
        renamed = {
            name: self.resource(name)
            for name, hint in hints.items()
            if isinstance(hint, type) and issubclass(hint, dg.ConfigurableResource)
        }
        written = {known: name for name, known in renamed.items()}

        def as_written(kwargs: dict[str, Any]) -> dict[str, Any]:
            return {written.get(name, name): value for name, value in kwargs.items()}

        @wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **as_written(kwargs))

        @wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from function(*args, **as_written(kwargs))

        # Dagster checks the kind of a function before it calls it.
        called: Any = generator if inspect.isgeneratorfunction(function) else plain
        signature = inspect.signature(function)
        called.__signature__ = signature.replace(
            parameters=[
                parameter.replace(name=renamed.get(name, name), annotation=hints.get(name, Any))
                for name, parameter in signature.parameters.items()
            ]
        )
        called.__annotations__ = {renamed.get(name, name): hint for name, hint in hints.items()}
        own: Callable[..., Any] = called
        return own
