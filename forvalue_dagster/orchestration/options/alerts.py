"""Who is told when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, InstanceOf, model_validator

from forvalue_dagster.options.base import Options

Kind = Literal["blocked", "warning", "stale", "override"]


@dataclass(frozen=True)
class Alert:
    """One thing that somebody should know.

    Attributes:
        kind: a blocked shard or dataset, a warning, a dataset that is stale, or a policy or a gate
            that was overridden.
        subject: what it is about: a check, a shard, a dataset.
        text: a sentence for a person; figures and names, never text of rows.
    """

    kind: Kind
    subject: str
    text: str


class Alerts(Options, hide_input_in_errors=True):  # a webhook is a secret
    """Who is told of blocked shards, warnings, stale datasets and overrides, once each."""

    webhook: InstanceOf[str] | None = Field(  # keeps an EnvVar as it is
        default=None,
        repr=False,
        description='URL that JSON is posted to, {"text": …, "kind": …, "subject": …}: as an '
        "incoming webhook of Slack, Mattermost or Teams takes it; best an EnvVar, for it is a "
        "secret.",
    )
    notify: Callable[[Alert], object] | None = Field(
        default=None,
        description="Called with each Alert, instead of or beside the webhook.",
    )
    stale_minutes: float = Field(
        default=60, description="A dataset is reported when it has been stale for so long."
    )
    seconds: int = Field(default=60, ge=1, description="Seconds between two looks.")
    running: bool = Field(default=True, description="Whether the sensor runs by default.")

    @model_validator(mode="after")
    def _somebody_is_told(self) -> Self:
        if self.webhook is None and self.notify is None:
            raise ValueError("Alerts tell nobody: set webhook, notify or both.")
        return self
