"""What a person is shown of how rows were read."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import forvalue_dagster as fv
from tests.tiny import byte_tokenizer, tiny_loaded, tiny_model

GOOD = {"prompt": "1+1?", "response": "Zwei: <b>2</b> é", "context": "sums", "id": 7}
TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "weight": 0},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def seen(data: Any, /, **options: Any) -> Any:
    return fv.preview(data, model=tiny_loaded("llama", torch.float32), **options)


def test_the_scored_tokens_are_marked() -> None:
    shown = seen([{"messages": TURNS}])
    (row,) = shown.rows
    turn = "<|im_start|>{}\n{}"
    end = "<|im_end|>"
    before = turn.format("user", "a") + f"{end}\n" + turn.format("assistant", "b") + f"{end}\n"
    before += turn.format("user", "c") + f"{end}\n" + "<|im_start|>assistant\n"
    assert row.pieces == ((before, False), (f"d{end}", True), ("\n", False))
    assert row.scored == 2
    assert f"{before}[[d{end}]]\n" in str(shown)
    assert f"\x1b[30;42md{end}\x1b[0m" in shown.in_colour()
    everything = seen([{"messages": TURNS}], tokens="all").rows[0]
    assert "".join(text for text, _ in everything.pieces) == f"{before}d{end}\n"
    # Neither the first token nor the turn that training leaves out.
    assert everything.scored == everything.tokens - 1 - 2


def test_blanks_at_the_border_of_a_run_are_kept() -> None:
    """Some tokenizers drop the blank that a decoded text begins with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "▁Hi": 1, "▁Hello": 2, "▁you": 3, "?": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert fast.decode([2, 3]) == "Hello you"
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ ' ' + m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    from forvalue_dagster.models.loading import prepare_model

    loaded = prepare_model(tiny_model("llama", torch.float32), fast)
    (row,) = fv.preview([{"prompt": "Hi", "response": "Hello you"}], model=loaded).rows
    assert row.pieces == (("Hi", False), (" Hello you", True))


def test_what_columns_became_and_what_is_unused() -> None:
    messages = [{"messages": TURNS, "id": 7, "context": "at nine"}]
    said = str(seen(messages))
    assert "form: chat (messages)" in said
    assert "messages is read as messages" in said
    assert "unused: id, context" in said
    assert "unused, and like a part of the conversation: context" in said


def test_a_row_says_why_it_is_skipped(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD)] * 3 + ["{", json.dumps(GOOD | {"response": ""})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "rows.csv").write_text("prompt,response\n1,2\n")
    shown = seen(tmp_path, rows=1)
    # The second file of a name is passed over, and said.
    assert any("is passed over" in said for said in shown.warnings)
    numbers = [row.row for row in shown.rows if row.shard == "rows"]
    assert numbers == [0, 3]
    assert shown.rows[1].skipped.startswith("unreadable: ")
    assert "problem: line, 1 rows" in str(shown)
    skipped = seen([GOOD | {"response": ""}]).rows[0]
    assert skipped.skipped.startswith("no_response: no assistant turn")
    assert skipped.pieces == ()


def test_text_of_a_row_steers_no_terminal_and_no_page() -> None:
    rows = [{"prompt": "<script>", "response": "\x1b[2J\u202e <b>"}]
    shown = seen(rows)
    assert "\\x1b[2J\\u202e <b>" in str(shown)
    assert "\x1b" not in str(shown)
    assert shown.in_colour().count("\x1b") == 4
    page = shown._repr_html_()
    assert "<mark>\\x1b[2J\\u202e &lt;b&gt;" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_it_shows_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="rows is 0; expected at least 1"):
        seen([GOOD], rows=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", torch.float32).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_the_command(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD))
    command = [sys.executable, "-m", "forvalue_dagster.preview", str(tmp_path / "rows.jsonl")]
    command += ["--model", str(model), "--rows", "1"]
    plain = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    assert "[[Zwei: <b>2</b> \\xe9<|im_end|>]]" in done.stdout
    assert "form: prompt and response (prompt, response)" in done.stdout
    # In a terminal it is in colour.
    ours, theirs = pty.openpty()
    subprocess.run(command, stdout=theirs, check=True)
    os.close(theirs)
    assert b"\x1b[30;42mZwei" in os.read(ours, 10_000)
    os.close(ours)
    command[3] = str(tmp_path / "absent.jsonl")
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "absent.jsonl does not exist" in failed.stderr


ENTRY = {
    "file_name": "rows.json",
    "formatting": "sharegpt",
    "columns": {"messages": "chat"},
    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "you"},
}


def test_the_command_takes_names_of_columns(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from forvalue_dagster.preview import main

    turns = [{"who": "me", "says": "1+1?"}, {"who": "you", "says": "Two"}]
    row = {"chat": turns, "task": "Add.", "sum": "Three"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"mine": ENTRY, "other": {"file_name": "x.json"}}))
    command = [str(tmp_path / "rows.jsonl"), "--model", str(model), "--columns"]

    def said(*columns: str) -> str:
        status = main([*command, *columns])
        out, err = capsys.readouterr()
        assert status == (1 if err.strip() and not out else 0)
        return out or err

    assert "[[Two<|im_end|>]]" in said(json.dumps(ENTRY))
    assert "[[Two<|im_end|>]]" in said(str(info), "--dataset", "mine")
    assert "[[Three<|im_end|>]]" in said('{"prompt": "task", "response": "sum"}')
    assert "holds the datasets mine, other; expected --dataset" in said(str(info))
    assert "'yours'; expected one of mine, other" in said(str(info), "--dataset", "yours")
    assert "names ['answer'], which are unknown; expected chosen, " in said('{"answer": "sum"}')
    assert "expected a JSON object, or a file of one" in said("{")
    assert "go together" in said('{"response": "sum"}')


def test_the_function_and_the_command_have_one_name() -> None:
    """An imported submodule takes the place of the package's attribute of its name."""
    code = (
        "import forvalue_dagster as fv; before = fv.preview\n"
        "import forvalue_dagster.preview as command\n"
        "from forvalue_dagster.engine.preview import preview\n"
        "assert before is preview and callable(fv.preview) and callable(command.main)\n"
        "try: fv.preview([], rows=0)\n"
        "except ValueError as error: assert 'at least 1' in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
