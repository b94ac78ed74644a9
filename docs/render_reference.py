"""Render docs/reference.md from docstrings, the component's fields and the options.

python docs/render_reference.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import forvalue_dagster as fv
from forvalue_dagster.options.base import Options

PAGE = Path(__file__).with_name("reference.md")
_HEADING = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.MULTILINE)


def main(page: Path = PAGE) -> None:
    schema = fv.ForValueComponent.get_model_cls().model_json_schema()
    parts = [
        "# Reference",
        "Rendered by `python docs/render_reference.py` from the code.",
        "## The component",
        inspect.cleandoc(fv.ForValueComponent.__doc__ or ""),
        table(schema),
    ]
    for name, part in schema["$defs"].items():
        kind = getattr(fv, name.removesuffix("Model"), None)
        if kind is not None:
            parts += [f"### {name.removesuffix('Model')}", summary(kind), table(part)]
    parts += ["## In Python"]
    for name in fv.__all__:
        member = getattr(fv, name)
        if inspect.isfunction(member):
            parts += [f"### {name}", f"```text\n{name}{signature(member)}\n```", prose(member)]
        elif f"{name}Model" in schema["$defs"] or name == "ForValueComponent":
            continue
        elif issubclass(member, Options):
            parts += [f"### {name}", summary(member), table(member.model_json_schema())]
        else:
            parts += [f"### {name}", prose(member)]
    page.write_text("\n\n".join(parts) + "\n", "utf-8")


def table(part: dict[str, Any]) -> str:
    lines = ["| option | kind | default | meaning |", "| --- | --- | --- | --- |"]
    required = part.get("required", [])
    for name, field in part["properties"].items():
        default = "required" if name in required else f"`{field.get('default')}`"
        if ("default" not in field and name not in required) or default.startswith("`__DAGSTER"):
            default = "–"
        said = (field.get("description") or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind_of(field)} | {default} | {said} |")
    return "\n".join(lines)


def kind_of(field: dict[str, Any]) -> str:
    kinds = []
    for option in field.get("anyOf", [field]):
        if "$ref" in option:
            kinds.append(option["$ref"].rpartition("/")[2].removesuffix("Model"))
        elif "enum" in option:
            kinds.append(", ".join(f"`{value}`" for value in option["enum"]))
        elif option.get("type") == "array":
            kinds.append("list")
        elif option.get("type") not in (None, "null"):
            kinds.append(option["type"] + bounds(option))
    # Any field may be a template, a string; that needs no saying where it is something else.
    named = [kind for kind in dict.fromkeys(kinds) if kind != "string"]
    return " or ".join(named or ["string"])


def bounds(option: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {option[name]}" for name, sign in signs.items() if name in option)


def signature(function: Any) -> str:
    plain = re.sub(r"<function .*? at 0x\w+>", "...", str(inspect.signature(function)))
    return re.sub(r"forvalue_dagster\.[\w.]+\.|'", "", plain)


def summary(member: Any) -> str:
    return inspect.cleandoc(member.__doc__ or "")


def prose(member: Any) -> str:
    """Return a docstring as Markdown: its sections as lists."""
    text = inspect.cleandoc(member.__doc__ or "")
    lines = []
    inside = False
    for line in text.splitlines():
        if _HEADING.match(line):
            inside = True
            lines.append(f"**{line}**\n")
        elif inside and re.match(r"^ {4}[\w ]+: ", line):
            name, _, said = line.strip().partition(": ")
            lines.append(f"- `{name}`: {said}")
        elif inside and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and not line.strip()
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
