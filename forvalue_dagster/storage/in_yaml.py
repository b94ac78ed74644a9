"""Options that may also stand in a component's YAML file."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import BaseModel


class InYaml(dg.Resolvable):
    """Beside `ConfigurableResource`: its fields, with their bounds, are what YAML may hold."""

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return what YAML is validated by; any field may also be a template.

        Dagster lets each field be a string as well, but keeps its bounds around both: a template
        is then compared with a number. They stay where they belong, inside the field's own type.
        """
        model = super().model()
        fields: dict[str, Any] = model.model_fields
        bounded = [field for field in fields.values() if field.metadata]
        for field in bounded:
            field.metadata = []
        if bounded:
            model.model_rebuild(force=True)
        return model
