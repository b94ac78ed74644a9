"""What all options have in common."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Self, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field


@dataclass_transform(field_specifiers=(Field,))
class Options(BaseModel):
    """Values that are checked when they are given and never change.

    They are given by name, or by position in the order of the fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = type(self).model_fields
        if len(values) > len(fields):
            raise TypeError(
                f"{type(self).__name__} has {len(fields)} options; got {len(values)} values."
            )
        given = dict(zip(fields, values, strict=False))
        if twice := given.keys() & named:
            raise TypeError(f"{type(self).__name__} got {sorted(twice)} twice.")
        super().__init__(**given, **named)

    @classmethod
    def of(cls, other: BaseModel) -> Self:
        """Return the options of this kind that another object has among its own."""
        return cls(**{name: getattr(other, name) for name in cls.model_fields})

    @classmethod
    def field(cls, name: str) -> Any:
        """Return an option, as it is described and bounded, to be one of another class."""
        return deepcopy(cls.model_fields[name])  # pydantic of some versions changes it
