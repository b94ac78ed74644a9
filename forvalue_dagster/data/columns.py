"""The option that names the columns of a source's conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Further columns that are found by their names, in the order they are looked for.
SYSTEM = ("system", "system_prompt")
HISTORY = ("history",)
TOOLS = ("tools",)
FUNCTIONS = ("functions",)
CHOSEN = ("chosen", "chosen_messages", "chosen_response", "preferred_output")
REJECTED = ("rejected", "rejected_messages", "rejected_response", "non_preferred_output")
LABEL = ("label", "kto_tag", "desirable")
IMAGES = ("images", "image")
MEDIA = ("videos", "video", "audios", "audio", "sounds", "sound")
_BESIDE = (*SYSTEM, *HISTORY, *TOOLS, *FUNCTIONS, *CHOSEN, *REJECTED, *LABEL, *IMAGES, *MEDIA)


@dataclass(frozen=True)
class Columns:
    """The columns that hold a source's conversations; None is detected by the usual names.

    Attributes:
        messages: column with a list of messages (chat `messages` or ShareGPT `conversations`).
        prompt: column with the prompt, or several that are joined; goes with `response` or
            `chosen`. The first must be there, the others may be absent.
        response: column with the response.
        system: column with a system prompt.
        group: column with the row's validation group.
        images: column with an image or a list of them; by default `images` or `image`.
        history: column with earlier turns, a list of [user, assistant].
        tools: column with tool definitions.
        chosen: column with the chosen answer, or the conversation that ends with it.
        rejected: column with the rejected answer, kept unscored.
        label: column that says whether the answer is a good one (KTO); bad ones are skipped.
        text: column with plain text, scored whole with `tokens="all"`.
        response_marker: marker in the text in front of the response, such as "### Answer:";
            the last one counts.
        ignore: columns to ignore although they are named like a part of the conversation.
        separator: text that joins the columns of a prompt.
        role_key: key of a message that names its speaker; by default role, from or speaker.
        content_key: key of a message that holds its text; by default content, value or text.
        speakers: role of each speaker with an unusual name: user, assistant, system, tool, or
            function_call for an assistant that calls tools.
    """

    messages: str | None = None
    prompt: str | Sequence[str] | None = None
    response: str | None = None
    system: str | None = None
    group: str | None = None
    images: str | None = None
    history: str | None = None
    tools: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None
    text: str | None = None
    response_marker: str | None = None
    ignore: Sequence[str] = ()
    separator: str = "\n\n"
    role_key: str | None = None
    content_key: str | None = None
    speakers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that columns that go together are named together, and only one form is named."""
        pair, preference = self.response is not None, self.chosen is not None
        if pair and preference:
            raise ValueError("Give either a response column or a chosen one, not both.")
        if (pair and self.prompt is None) or (self.prompt is not None and not (pair or preference)):
            raise ValueError(
                "prompt and response (or chosen) columns go together; got "
                f"prompt={self.prompt!r}, response={self.response!r}."
            )
        forms = (self.messages is not None, self.prompt is not None, self.is_text)
        if sum(forms) > 1 or (preference and self.is_text):
            raise ValueError(
                "Give either a messages column, or prompt and response, or text; not both."
            )

    @property
    def is_text(self) -> bool:
        """Whether rows are plain text."""
        return self.text is not None or self.response_marker is not None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The named columns of the prompt."""
        if self.prompt is None:
            return ()
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def named(self) -> tuple[str, ...]:
        """Every column that is named, in the order of the attributes."""
        others = (self.system, self.group, self.images, self.history, self.tools, self.chosen)
        last = (self.rejected, self.label, self.text)
        given = (self.messages, *self.prompts, self.response, *others, *last)
        return tuple(name for name in given if name is not None)

    @classmethod
    def from_llamafactory(cls, entry: Mapping[str, Any]) -> Columns:
        """Read an entry of LLaMA-Factory's dataset_info.json.

        Its `columns`, `tags`, `formatting` and `ranking` are used, with that program's defaults;
        the file's name and origin are ignored.

        Args:
            entry: the value under the dataset's name.

        Raises:
            ValueError: if a value is not known.
        """
        formatting = entry.get("formatting", "alpaca")
        if formatting not in _LLAMAFACTORY:
            raise ValueError(
                f"formatting {formatting!r} is unknown; expected one of {', '.join(_LLAMAFACTORY)}."
            )
        # There, a mapping's missing entries are not read; without a mapping the usual names are.
        names = dict(entry.get("columns") or _LLAMAFACTORY[formatting])
        tags = dict(entry.get("tags") or {})
        if unknown := sorted((names.keys() - _LLAMAFACTORY_COLUMNS) | (tags.keys() - _TAGS)):
            raise ValueError(
                f"columns or tags {unknown} are unknown; expected "
                f"{', '.join((*_LLAMAFACTORY_COLUMNS, *_TAGS))}."
            )
        ranking = bool(entry.get("ranking"))
        about: dict[str, Any] = {
            "system": names.get("system"),
            "images": names.get("images"),
            "history": names.get("history"),
            "tools": names.get("tools"),
            "chosen": names.get("chosen", "chosen") if ranking else None,
            "rejected": names.get("rejected", "rejected") if ranking else None,
            "label": names.get("kto_tag"),
            "separator": "\n",
            "role_key": tags.get("role_tag"),
            "content_key": tags.get("content_tag"),
            "speakers": {tags[tag]: role for tag, role in _TAGS.items() if role and tag in tags},
        }
        response = names.get("response")
        if formatting != "alpaca":
            about["messages"] = names.get("messages", _LLAMAFACTORY[formatting]["messages"])
        elif ranking or response:
            prompts = (names.get("prompt"), names.get("query"))
            about["prompt"] = tuple(name for name in prompts if name)
            about["response"] = None if ranking else response
        else:  # text for continued pretraining
            about["text"] = names.get("prompt")
        given = cls(**about)
        media = [names[name] for name in ("videos", "audios") if names.get(name)]
        ignored = tuple(name for name in _BESIDE if name not in (*given.named, *media))
        return replace(given, ignore=ignored)


_LLAMAFACTORY: dict[str, dict[str, str]] = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
}
_LLAMAFACTORY_COLUMNS = dict.fromkeys(
    (
        *("prompt", "query", "response", "history", "messages", "system", "tools"),
        *("images", "videos", "audios", "chosen", "rejected", "kto_tag"),
    )
)
# LLaMA-Factory's tags, and the role of each that names a speaker.
_TAGS = {
    "role_tag": None,
    "content_tag": None,
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
