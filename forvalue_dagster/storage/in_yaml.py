"""Options that can also be set in a component's YAML file."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import BaseModel


class InYaml(dg.Resolvable):
    """A base class, used with a pydantic class, that lets its fields be set in YAML."""

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return the pydantic model that validates the YAML.

        Dagster derives it, with a template (a string) as an alternative in each field. But it
        loses descriptions of fields with defaults, and applies bounds to both alternatives, so
        that a template is compared with a number. The field's own type has the bounds as well.
        """
        model = super().model()
        known: dict[str, Any] = cls.model_fields  # type: ignore[attr-defined]
        if model not in _MENDED:
            for name, field in model.model_fields.items():
                field.metadata = []
                field.description = field.description or known[name].description
            model.model_rebuild(force=True)
            _MENDED.add(model)
        return model


_MENDED: set[type[BaseModel]] = set()
