"""Forward-only data valuation for Dagster: value scores, a filtered dataset, a gate.

Public names are loaded when first used: importing the package loads neither torch nor Dagster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forvalue_dagster.data.columns import Columns as Columns
    from forvalue_dagster.data.corruption import corrupt_responses as corrupt_responses
    from forvalue_dagster.data.files import ReadLimits as ReadLimits
    from forvalue_dagster.data.read import read_rows as read_rows
    from forvalue_dagster.data.recipes import noise_recipe as noise_recipe
    from forvalue_dagster.engine.functions import pairwise_values as pairwise_values
    from forvalue_dagster.engine.functions import sample_features as sample_features
    from forvalue_dagster.engine.functions import validation_profile as validation_profile
    from forvalue_dagster.engine.functions import value_dataset as value_dataset
    from forvalue_dagster.engine.functions import value_features as value_features
    from forvalue_dagster.engine.preview import preview as preview
    from forvalue_dagster.engine.selection import select_rows as select_rows
    from forvalue_dagster.models.embedded import (
        embedded_model_directory as embedded_model_directory,
    )
    from forvalue_dagster.models.warm_up import train_adapter as train_adapter
    from forvalue_dagster.options.model import ModelConfig as ModelConfig
    from forvalue_dagster.options.selection import Attribution as Attribution
    from forvalue_dagster.options.selection import Refine as Refine
    from forvalue_dagster.options.selection import Selection as Selection
    from forvalue_dagster.options.valuation import NoiseOptions as NoiseOptions
    from forvalue_dagster.options.warm_up import WarmUp as WarmUp
    from forvalue_dagster.orchestration.component import ForValueComponent as ForValueComponent
    from forvalue_dagster.orchestration.definitions import (
        valuation_definitions as valuation_definitions,
    )
    from forvalue_dagster.orchestration.options.alerts import Alerts as Alerts
    from forvalue_dagster.orchestration.options.plan import Automation as Automation
    from forvalue_dagster.orchestration.options.plan import Compute as Compute
    from forvalue_dagster.orchestration.options.policies import GatePolicy as GatePolicy
    from forvalue_dagster.orchestration.options.policies import SelectionPolicy as SelectionPolicy
    from forvalue_dagster.orchestration.options.policies import WarningPolicy as WarningPolicy
    from forvalue_dagster.orchestration.options.resources import Valuation as Valuation
    from forvalue_dagster.orchestration.options.sources import RowSource as RowSource
    from forvalue_dagster.orchestration.options.sources import UpstreamRows as UpstreamRows
    from forvalue_dagster.quality.gate import GateReport as GateReport
    from forvalue_dagster.quality.gate import require_certified as require_certified
    from forvalue_dagster.storage.location import Storage as Storage

_HOMES = {
    "Alerts": "orchestration.options.alerts",
    "Attribution": "options.selection",
    "Automation": "orchestration.options.plan",
    "Columns": "data.columns",
    "Compute": "orchestration.options.plan",
    "ForValueComponent": "orchestration.component",
    "GatePolicy": "orchestration.options.policies",
    "GateReport": "quality.gate",
    "ModelConfig": "options.model",
    "NoiseOptions": "options.valuation",
    "ReadLimits": "data.files",
    "Refine": "options.selection",
    "RowSource": "orchestration.options.sources",
    "Selection": "options.selection",
    "SelectionPolicy": "orchestration.options.policies",
    "Storage": "storage.location",
    "UpstreamRows": "orchestration.options.sources",
    "Valuation": "orchestration.options.resources",
    "WarmUp": "options.warm_up",
    "WarningPolicy": "orchestration.options.policies",
    "corrupt_responses": "data.corruption",
    "embedded_model_directory": "models.embedded",
    "noise_recipe": "data.recipes",
    "pairwise_values": "engine.functions",
    "preview": "engine.preview",
    "read_rows": "data.read",
    "require_certified": "quality.gate",
    "sample_features": "engine.functions",
    "select_rows": "engine.selection",
    "train_adapter": "models.warm_up",
    "validation_profile": "engine.functions",
    "valuation_definitions": "orchestration.definitions",
    "value_dataset": "engine.functions",
    "value_features": "engine.functions",
}

__version__ = "0.1.0"
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
