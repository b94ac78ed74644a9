"""Alerts and their options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, InstanceOf, model_validator

from forvalue_dagster.options.base import Options

Kind = Literal["blocked", "warning", "stale", "override"]


@dataclass(frozen=True)
class Alert:
    """One message to a person about something that is wrong.

    Attributes:
        kind: kind of the alert: a blocked shard or dataset, a warning, a stale dataset, or an
            overridden policy or gate.
        subject: the check, shard or dataset that it is about.
        text: a sentence for a person, with figures and names, but never text of rows.
    """

    kind: Kind
    subject: str
    text: str


class Alerts(Options, hide_input_in_errors=True):  # a webhook is a secret
    """Receivers of alerts: one alert for each blocked shard, warning, stale dataset, override."""

    webhook: InstanceOf[str] | None = Field(  # keeps an EnvVar as it is
        default=None,
        repr=False,
        description='URL to post JSON to, {"text": …, "kind": …, "subject": …}, as incoming '
        "webhooks of Slack, Mattermost and Teams expect it; best an EnvVar, as it is a secret.",
    )
    notify: Callable[[Alert], object] | None = Field(
        default=None,
        description="Function called with each Alert, instead of or in addition to the webhook.",
    )
    stale_minutes: float = Field(
        default=60, description="A dataset is reported when it has been stale for this long."
    )
    seconds: int = Field(default=60, ge=1, description="Seconds between two looks.")
    running: bool = Field(default=True, description="Whether the sensor runs by default.")

    @model_validator(mode="after")
    def _somebody_is_told(self) -> Self:
        if self.webhook is None and self.notify is None:
            raise ValueError("Alerts tell nobody: set webhook, notify or both.")
        return self
