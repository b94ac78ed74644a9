"""Options that may also stand in a component's YAML file."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import BaseModel


class InYaml(dg.Resolvable):
    """Beside a pydantic class: its fields, as they are described and bounded, may stand in YAML."""

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return what YAML is validated by.

        Dagster derives it, with a template (a string) as an alternative in each field; but it loses
        descriptions of fields with defaults, and keeps bounds around both alternatives, so that a
        template is compared with a number. The field's own type has the bounds as well.
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
