"""Who is told when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Alerts:
    """Who is told of blocked shards, warnings, stale datasets and overrides, once each.

    Attributes:
        webhook: URL that JSON is posted to, {"text": …, "kind": …, "subject": …}: as an incoming
            webhook of Slack, Mattermost or Teams takes it; best an EnvVar, for it is a secret.
        notify: called with each Alert, instead of or beside the webhook.
        stale_minutes: a dataset is reported when it has been stale for so long.
        seconds: between two looks.
        running: whether the sensor runs by default.
    """

    webhook: str | None = None
    notify: Callable[[Alert], object] | None = None
    stale_minutes: float = 60
    seconds: int = 60
    running: bool = True

    def __post_init__(self) -> None:
        """Refuse what would tell nobody."""
        if self.webhook is None and self.notify is None:
            raise ValueError("Alerts tell nobody: set webhook, notify or both.")
