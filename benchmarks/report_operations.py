"""The part of docs/benchmarks.md on shards, steps and storage."""

from __future__ import annotations

from benchmarks.rendering import result, table


def many_shards() -> str:
    measured = result("many_shards")
    stages = [
        (name, f"{one['seconds']:.1f} s", f"{one['peak_megabytes']:,} MB")
        for part in ("prepare", "profile", "revalue")
        for name, one in measured[part].items()
        if isinstance(one, dict)
    ]
    runs = measured["revalue"]["runs"]
    return f"""## Many shards

`python -m benchmarks.many_shards`: {measured["shards"]:,} shards of {measured["rows"]} rows, drawn from 400
short ones, so that features are computed quickly; then another validation set. All runs that the sensors and
automation ask for, at most 100 shards each, in one process for each part; "all" is everything after the profile.

{table(("stage", "time", "peak memory"), stages)}

{runs} runs after the new profile. To start a run in a separate process takes another
{measured["process_start_seconds"]} s. The event of one shard's scores has
{measured["revalue"]["event_bytes"] / 1000:.1f} kB.
"""


def gate_cost() -> str:
    measured = result("gate_cost")
    seals, listed = measured["seals of a re-valuation"], measured["seconds to list files"]
    spent = measured["seconds of the gate"]
    rows = [(f"{int(files):,}", f"{seconds:.2f} s") for files, seconds in listed.items()]
    return f"""## What the gate costs

`python -m benchmarks.gate_cost`: `require_certified` in front of a dataset of {measured["shards"]:,} shards takes
**{min(spent):.2f} to {max(spent):.2f} s** ({len(spent)} calls, on a machine with other work).

Digests: a re-valuation of {seals["rows"]:,} rows ({seals["megabytes"]:,} MB of features) takes
{seals["re-valuation, seconds"]:.1f} s. The digests of everything that is read and written take {seals["seals, seconds"]:.2f} s of them,
**{seals["share"]:.1%}** with one thread. More threads make the re-valuation faster, but not the digests.

Listing a folder of shards:

{table(("files", "listing"), rows)}
"""


def step_overhead() -> str:
    measured = result("step_overhead")
    turns = [
        (name, *(f"{seconds:.1f} s" for seconds in times))
        for name, times in measured["seconds"].items()
    ]
    count = len(measured["seconds"]["step"])
    return f"""## A step against the plain function

`python -m benchmarks.step_overhead`: the feature step of a shard of {measured["rows"]} rows of the DataInf
task ({measured["response_tokens"]:,} response tokens) against `sample_features` on the same rows, in
turns: **{measured["step / function"]:.3f} ×** (median of {count}). Then {measured["rows appended"]} rows are
appended: {measured["rows passed of those"]} pass through the model.

{table(("", *(f"turn {turn + 1}" for turn in range(count))), turns)}
"""


def feature_store() -> str:
    measured = result("feature_store")
    names = {"write": "write, a commit a shard", "write, resumable": "write, resumable"}
    names |= {"scan": "scan, windows of 512 rows", "merge": "merge of 10 rows into a shard"}
    stores = measured["results"]
    rows = [
        (label, *(f"{store['steps'][step]['seconds']:.2f} s" for store in stores.values()))
        for step, label in names.items()
    ]
    look_ups = [
        min(one["seconds"] for step, one in store["steps"].items() if step.startswith("look-up"))
        for store in stores.values()
    ]
    rows.append(("look-up of 100 sample ids, the fastest way", *(f"{s:.2f} s" for s in look_ups)))
    rows.append(("on disk", *(f"{s['megabytes']['merged']:.0f} MB" for s in stores.values())))
    rows.append(("installed", *(f"{s['installed_megabytes']:.0f} MB" for s in stores.values())))
    return f"""## Where the feature table lies

`python -m benchmarks.feature_store`: {measured["shards"]} shards of {measured["rows a shard"]} rows of
{measured["tokens a row"]} tokens, medians of {measured["repeats"]} repeats, one core, warm page cache, on a machine
with other work: ignore differences below half. Parquet files are flushed to the disk; the other formats leave
that to the system. "resumable" keeps parts of {measured["rows a part"]} rows through a crash.
[The decision](architecture.md#where-the-feature-table-lies).

{table(("", *stores), rows)}
"""


def adoption() -> str:
    measured, response = result("adoption"), result("forward_passes")
    seconds, ui, stored = (
        measured[key] for key in ("seconds", "seconds of the UI", "stored bytes a row")
    )
    tokens = response["response_tokens"] / response["rows"]
    features = result("revaluation")["stored bytes a token"] * tokens
    rows = [
        ("`sample_features`, the embedded model (width 576)", f"{features / 1e3:.1f} GB"),
        *((f"`{n}`" if "_" in n else n, f"{size / 1e3:.2f} GB") for n, size in stored.items()),
    ]
    dagster, integrations = (
        seconds[key] for key in ("import dagster", "import dagster and its integrations")
    )
    return f"""## What adoption costs

`python -m benchmarks.adoption`. Loading this project's definitions takes
**{measured["seconds beyond dagster"]:.2f} s** beyond importing Dagster ({dagster:.2f} s);
{integrations - dagster:.2f} s of it are the imports of dagster-aws and dagster-polars. `dagster dev` lists the
project's assets {ui["this project"]} s after its start; for a project with one asset it takes
{ui["one asset"]} s. Without extras, {measured["installed_megabytes"]:,} MB are installed;
{measured["of that not already there"]} MB of them are new if torch, transformers, Dagster and polars are already there.

Stored for a million rows like GSM8K's ({tokens:.0f} response tokens each):

{table(("", "on disk"), rows)}
"""
