"""The feature pass: a table that outlives validation sets, and crashes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from upath import UPath

import forvalue_dagster as fv
from forvalue_dagster.engine.feature_scoring import score_features
from forvalue_dagster.engine.feature_table import FEATURE_RESULTS, PLAIN_COLUMNS
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.fingerprint import FingerprintMismatchError
from forvalue_dagster.engine.outcomes import NonFiniteModelError
from forvalue_dagster.engine.scoring import build_profile, score_rows
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import FeaturePrecision, ValuationOptions
from forvalue_dagster.storage.parts import StoredParts
from tests.engine.test_functions import GROUPED, TRAIN, VALIDATION, make_rows
from tests.tiny import byte_tokenizer, tiny_loaded, tiny_model

ROOT = Path(__file__).parents[2]
COMPLETE = FeaturePrecision(1000, "float32")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded("qwen2", max_length=128)


@pytest.mark.parametrize("preconditioner", ["none", "activation"])
@pytest.mark.parametrize("tokens", ["response", "all"])
def test_complete_features_give_the_scores_of_the_exact_pass(
    loaded, tokens: str, preconditioner: str
) -> None:
    how = {"model": loaded, "tokens": tokens, "features": COMPLETE}
    features = fv.sample_features(TRAIN, **how)
    profile = fv.validation_profile(VALIDATION, columns=GROUPED, **how)
    scores = fv.value_features(features, profile, preconditioner=preconditioner)
    exact = fv.value_dataset(
        TRAIN,
        VALIDATION,
        model=loaded,
        tokens=tokens,
        preconditioner=preconditioner,
        columns=GROUPED,
    )
    assert scores.columns == exact.columns
    assert scores.drop("value_source").schema == exact.drop("value_source").schema
    assert set(scores["value_source"]) == {"features"}
    for name in exact.columns:
        if exact[name].dtype == pl.Float64 and name != "noise_probability":
            scale = float(exact[name].abs().max())
            np.testing.assert_allclose(scores[name], exact[name], rtol=1e-4, atol=1e-5 * scale)
        elif name not in ("value_source", "noise_probability", "profile"):
            assert scores[name].equals(exact[name]), name


def test_the_table_has_its_columns_and_no_row_is_lost(loaded) -> None:
    rows = [*TRAIN[:3], {"prompt": "a", "response": ""}, *TRAIN[3:5]]
    table = fv.sample_features(rows, model=loaded)
    assert set(table.columns) == {*PLAIN_COLUMNS, *FEATURE_RESULTS}
    assert table["row"].to_list() == list(range(6))
    assert table["reason"].to_list() == [None] * 3 + ["no_response"] + [None] * 2
    assert table["last_hidden"].is_null().to_list() == [False] * 3 + [True] + [False] * 2
    tokens = table["response_tokens"][0]
    assert len(table["last_hidden"][0]) == tokens * 32
    assert len(table["error_values"][0]) == tokens * 16 * 2
    scores = fv.value_features(table, fv.validation_profile(VALIDATION, model=loaded))
    assert scores["status"].to_list() == table["status"].to_list()
    assert scores["value"].is_null().to_list() == table["last_hidden"].is_null().to_list()


@pytest.mark.parametrize("window_rows", [1, 5, 1000])
@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_windows_and_batches_change_nothing(loaded, window_rows: int, batch_tokens: int) -> None:
    options = ValuationOptions(batch_tokens=batch_tokens, window_rows=window_rows)
    profile, _ = build_profile(loaded, fv.read_rows(VALIDATION), options)
    table = pl.concat(feature_parts(loaded, fv.read_rows(TRAIN), options))
    scores = score_features(table.lazy(), profile, options)
    expected = fv.value_features(
        fv.sample_features(TRAIN, model=loaded), fv.validation_profile(VALIDATION, model=loaded)
    )
    # A hidden state on the edge of a rounding step may fall to either side of it.
    scale = float(expected["value"].abs().max())
    np.testing.assert_allclose(scores["value"], expected["value"], atol=2e-3 * scale)
    assert scores.select("row", "status").equals(expected.select("row", "status"))


def test_an_empty_shard_has_an_empty_table(loaded) -> None:
    table = fv.sample_features(fv.read_rows([]), model=loaded)
    assert len(table) == 0
    scores = fv.value_features(table, fv.validation_profile(VALIDATION, model=loaded))
    assert len(scores) == 0
    assert "value" in scores.columns


def variants(loaded: LoadedModel) -> dict[str, tuple[LoadedModel, ValuationOptions]]:
    options = ValuationOptions()
    other = tiny_loaded("qwen2", max_length=128)
    other.model.get_input_embeddings().weight.data[7, 3] += 1e-6
    tokenizer = byte_tokenizer("{{ messages }}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    tokenizer.chat_template = loaded.tokenizer.chat_template
    return {
        "weights": (other, options),
        "tokenizer": (replace(loaded, tokenizer=tokenizer), options),
        "adapter": (replace(loaded, adapter="0123456789abcdef"), options),
        "chat template": (replace(loaded, chat_template="plain"), options),
        "max_length": (replace(loaded, max_length=127), options),
        "dtype": (tiny_loaded("qwen2", torch.float32, max_length=128), options),
        "tokens": (loaded, options.model_copy(update={"tokens": "all"})),
        "top_errors": (loaded, options.model_copy(update={"features": FeaturePrecision(15)})),
        "hidden": (
            loaded,
            options.model_copy(update={"features": FeaturePrecision(16, "float16")}),
        ),
    }


def test_strangers_do_not_meet(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    table = fv.sample_features(TRAIN[:2], model=loaded)
    for part, (model, options) in variants(loaded).items():
        profile, _ = build_profile(model, fv.read_rows(VALIDATION), options)
        with pytest.raises(FingerprintMismatchError, match=f"profile: .*{part} \\("):
            fv.value_features(table, profile)
    monkeypatch.setattr("forvalue_dagster.engine.fingerprint.FEATURES_VERSION", 999)
    profile = fv.validation_profile(VALIDATION, model=loaded)
    with pytest.raises(FingerprintMismatchError, match=r"code version \(3 in the features, 999"):
        fv.value_features(table, profile)


def test_batches_and_preconditioner_are_no_part_of_the_fingerprint(loaded) -> None:
    table = fv.sample_features(TRAIN[:2], model=loaded, batch_tokens=50)
    profile = fv.validation_profile(VALIDATION, model=loaded, batch_tokens=70)
    assert len(fv.value_features(table, profile, preconditioner="none", centre=True)) == 2


def test_a_row_that_is_not_finite_is_skipped_alone() -> None:
    broken = tiny_loaded("llama", torch.float32)
    rows = [*TRAIN[:3], {"prompt": "z", "response": "~"}]
    expected = fv.sample_features(TRAIN[:3], model=broken)
    tilde = broken.tokenizer("~")["input_ids"][0]
    broken.model.get_input_embeddings().weight.data[tilde] = torch.nan
    table = fv.sample_features(rows, model=broken)
    assert table["reason"].to_list() == [None, None, None, "non_finite"]
    np.testing.assert_allclose(table["nll"][:3], expected["nll"], rtol=1e-4)


def test_a_model_that_is_never_finite_is_an_error() -> None:
    broken = tiny_loaded("llama", torch.float32)
    broken.model.get_input_embeddings().weight.data.fill_(torch.nan)
    message = "not finite for any of the 3 rows .* check its weights"
    with pytest.raises(NonFiniteModelError, match=message):
        fv.sample_features(TRAIN[:3], model=broken)
    good = fv.validation_profile(VALIDATION, model=tiny_loaded("llama", torch.float32))
    with pytest.raises(NonFiniteModelError, match=message):
        score_rows(broken, fv.read_rows(TRAIN[:3]), good, ValuationOptions())
    with pytest.raises(NonFiniteModelError, match="any of the 6 rows"):
        fv.validation_profile(VALIDATION, model=broken)


class StopError(Exception):
    pass


def test_an_interrupted_pass_goes_on_and_ends_the_same(loaded, tmp_path: Path) -> None:
    options = ValuationOptions(window_rows=4, batch_tokens=120)
    frame = fv.read_rows(TRAIN)
    expected = pl.concat(feature_parts(loaded, frame, options))
    store = StoredParts(UPath(tmp_path / "parts"))

    def stop(done: int, _: int) -> None:
        if done > 9:
            raise StopError

    with pytest.raises(StopError):
        list(feature_parts(loaded, frame, options, stop, store))
    assert len(store.keys) == 2
    again = StoredParts(store.folder)
    resumed = pl.concat(feature_parts(loaded, frame, options, store=again))
    assert again.reused == 2
    assert resumed.equals(expected)
    assert pl.concat(again.frames()).equals(expected)


@pytest.mark.parametrize("change", ["row", "option", "budget"])
def test_parts_of_something_else_are_not_taken(loaded, tmp_path: Path, change: str) -> None:
    options = ValuationOptions(window_rows=4)
    store = StoredParts(UPath(tmp_path))
    list(feature_parts(loaded, fv.read_rows(TRAIN), options, store=store))
    rows = list(TRAIN)
    if change == "row":
        rows[5] = rows[5] | {"response": "something else"}
    elif change == "option":
        options = options.model_copy(update={"features": FeaturePrecision(3)})
    else:
        options = options.model_copy(update={"batch_tokens": 77})
    again = StoredParts(UPath(tmp_path))
    table = pl.concat(feature_parts(loaded, fv.read_rows(rows), options, store=again))
    assert again.reused == (len(again.keys) - 1 if change == "row" else 0)
    assert table.equals(pl.concat(feature_parts(loaded, fv.read_rows(rows), options)))


WORKER = """
import sys, time
from pathlib import Path
import torch
from upath import UPath
import forvalue_dagster as fv
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.storage.parts import StoredParts
torch.set_num_threads(1)
model, rows, folder = sys.argv[1:4]
loaded = load_model(ModelConfig(model, local_files_only=True))
options = ValuationOptions(window_rows=8, batch_tokens=150)
store = StoredParts(UPath(folder) / ".parts")
for part in feature_parts(loaded, fv.read_rows(rows), options, store=store):
    print("part", flush=True)
    if len(sys.argv) > 4:
        time.sleep(0.3)
Path(folder, "table.bin").write_bytes(b"".join(
    (store.folder / store.attempt / f"{key}.parquet").read_bytes() for key in store.keys))
print("reused", store.reused)
"""


@pytest.mark.faults
def test_kill_9_in_the_middle(tmp_path: Path) -> None:
    """A real process, really killed; the bytes are those of an undisturbed one."""
    model = tmp_path / "model"
    tiny_model("llama", torch.float32).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    rows = tmp_path / "rows.jsonl"
    pl.DataFrame(make_rows(60, 4)).write_ndjson(rows)

    def command(folder: str, *more: str) -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return [sys.executable, "-c", WORKER, str(model), str(rows), str(tmp_path / folder), *more]

    process = subprocess.Popen(command("a", "slowly"), cwd=ROOT, stdout=subprocess.PIPE)
    for _ in range(3):
        assert process.stdout is not None
        assert process.stdout.readline() == b"part\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "a" / "table.bin").exists()
    resumed = subprocess.run(command("a"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(resumed.stdout.split()[-1]) >= 3
    subprocess.run(command("b"), cwd=ROOT, capture_output=True, check=True)
    assert (tmp_path / "a" / "table.bin").read_bytes() == (
        tmp_path / "b" / "table.bin"
    ).read_bytes()
