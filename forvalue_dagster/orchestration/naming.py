"""What the graph's pieces are called, how they are partitioned, which version they are."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from typing import Any, get_type_hints

import dagster as dg

# Raised when the meaning of a stored table changes: it is then made again.
CODE_VERSION = "6"
# Files outside Dagster, of which sensors report what changed.
TRAINING_FILES, TRAINING_SHARDS = "training_files", "training_shards"
VALIDATION_FILES, MODEL_FILES = "validation_files", "model_files"
# The blocking checks of a shard.
ROW_EXPECTATIONS = "row_expectations"
ROW_CONSERVATION = "row_conservation"
LEAKAGE = "validation_leakage"
NOISE_FRACTION = "noise_fraction"
# Asset → its blocking checks, the noise gate aside: that is judged anew from the stored scores.
BLOCKING_CHECKS = {
    "raw_finetuning_data": (ROW_EXPECTATIONS,),
    "value_scores": (ROW_CONSERVATION, LEAKAGE),
}
BLOCKING = frozenset(
    {NOISE_FRACTION, *(check for checks in BLOCKING_CHECKS.values() for check in checks)}
)


def code_version(*settings: object) -> str:
    """Return the code version of an asset whose content depends on settings, too.

    Dagster sees only code versions: so a changed setting makes again what rests on it.
    """
    plain = json.dumps(settings, sort_keys=True, default=str)
    return f"{CODE_VERSION}-{sha256(plain.encode()).hexdigest()[:8]}"


def resolved(
    resource: dg.ConfigurableResource[Any], *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a resource's settings as plain values, environment variables looked up."""
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
    """Return setting → "definition" and "run", of those that a run's configuration changed.

    Args:
        defined: name → resource as the definition has it.
        in_run: name → resource as the run has it.
    """
    changed: dict[str, dict[str, Any]] = {}
    for name, resource in in_run.items():
        without = ("override_reason", "s3", "storage_options")
        said = resolved(defined[name], without=without)
        for field, value in resolved(resource, without=without).items():
            if value != said[field]:
                changed[f"{name}.{field}"] = {"definition": said[field], "run": value}
    return changed


# (spec, the asset's name in this graph) → the spec as the user wants it.
Translation = Callable[[dg.AssetSpec, str], dg.AssetSpec]
# Every asset that any graph of ours has.
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
        prefix: put before every asset key; also names jobs, sensors and partitions.
        group: the group in the UI.
        upstream_shards: partitions of the asset that yields the rows; None if they are files.
        translation: what the user makes of an asset's key and attributes; None leaves them.
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
        """Return the shards that there are."""
        return list(self.shards.get_partition_keys(dynamic_partitions_store=instance))

    def key(self, name: str) -> dg.AssetKey:
        """Return the key of an asset."""
        spec = dg.AssetSpec(dg.AssetKey([*self.prefix, name]))
        return spec.key if self.translation is None else self.translation(spec, name).key

    def translated(self, definitions: dg.Definitions, names: Sequence[str]) -> dg.Definitions:
        """Give the assets the attributes that the user's translation gives them."""
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
        """What lies outside Dagster; a sensor may never have reported it."""
        names = (TRAINING_FILES, TRAINING_SHARDS, VALIDATION_FILES, MODEL_FILES)
        return dg.AssetSelection.assets(*map(self.key, names))

    @property
    def shared(self) -> dg.AssetSelection:
        """What every shard is valued against."""
        names = ("validation_data", "validation_profile")
        return dg.AssetSelection.assets(*map(self.key, names))

    def name(self, name: str) -> str:
        """Return the name of a job, a sensor or a set of partitions."""
        return "_".join([*self.prefix, "forvalue", name])

    def resource(self, name: str) -> str:
        """Return the key of a resource: instances in one project have resources of their own."""
        return "_".join([*self.prefix, name])

    def own(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function of an asset, check, op or sensor this instance's resources.

        Dagster finds a resource by the name of the parameter that is annotated with it; to Dagster
        these parameters are called by `resource`, to the function as they are written.
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

        # Dagster asks of what kind a function is before it calls it.
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
