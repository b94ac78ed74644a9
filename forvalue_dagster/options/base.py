"""The base class of all options."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Self, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field


@dataclass_transform(field_specifiers=(Field,))
class Options(BaseModel):
    """Options that are checked when they are set, and cannot be changed.

    They can be given by name, or by position in the order of the fields.
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
        """Return options of this class from another object that has the same fields."""
        return cls(**{name: getattr(other, name) for name in cls.model_fields})

    @classmethod
    def field(cls, name: str) -> Any:
        """Return an option's field, with description and bounds, to use in another class."""
        return deepcopy(cls.model_fields[name])  # pydantic of some versions changes it
