"""The job `forvalue_estimate`: a dry run that counts rows and tokens for the model."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import dagster as dg
import polars as pl
from pydantic import Field

from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.options.plan import Plan
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.options.sources import RowSource
from forvalue_dagster.orchestration.trained_adapter import trained_adapter
from forvalue_dagster.storage.feature_store import FeatureStore
from forvalue_dagster.storage.location import Storage

_COLUMNS = ("shard", "rows", "features_stored", "rows_repeated", "rows_to_pass", "tokens_to_pass")


class Estimate(dg.Config):
    """Options of the job `forvalue_estimate`."""

    shards: list[str] | None = Field(
        default=None, description="Shards of the source; all of them by default."
    )
    tokenised_rows: int = Field(
        default=200,
        ge=1,
        description="Rows of each shard whose tokens are counted; the tokens of the other rows are "
        "estimated from them.",
    )


def build_estimate_job(naming: Naming, plan: Plan) -> dg.JobDefinition:
    """Build the job `forvalue_estimate`, which loads the model only for its fingerprint."""

    @dg.op(name=naming.name("count_rows"))
    @naming.own
    def count_rows(
        context: dg.OpExecutionContext,
        config: Estimate,
        training_rows: RowSource,
        valuation: Valuation,
        storage: Storage,
    ) -> None:
        from forvalue_dagster.engine.fingerprint import fingerprint
        from forvalue_dagster.engine.tokens import count_tokens

        listing = training_rows.listing()
        records: list[dict[str, str | int]] = []
        seen: set[str] = set()
        store = FeatureStore(storage, storage.path(*naming.key("sample_features").path))
        with valuation.session(trained_adapter(naming, plan, storage)) as loaded:
            mark = fingerprint(loaded, valuation.options())
            for shard in sorted(config.shards or listing):
                rows = training_rows.read(shard, listing)
                named = rows.filter(pl.col("sample_id").is_not_null())
                new = named.unique("sample_id", maintain_order=True)
                stored = store.known(mark, new["sample_id"])
                new = new.filter(
                    ~pl.col("sample_id").is_in(stored.implode()),
                    ~pl.col("sample_id").is_in(list(seen)),
                )
                seen.update(new["sample_id"])
                held = named.filter(pl.col("sample_id").is_in(stored.implode())).height
                counted = new.head(config.tokenised_rows)
                tokens = count_tokens(loaded, counted, valuation.options())
                records.append(
                    {
                        "shard": shard,
                        "rows": len(rows),
                        "features_stored": held,
                        "rows_repeated": len(named) - held - len(new),
                        "rows_to_pass": len(new),
                        "tokens_to_pass": round(tokens * len(new) / max(len(counted), 1)),
                    }
                )
        total = pl.DataFrame(
            records, schema=dict.fromkeys(_COLUMNS, pl.Int64) | {"shard": pl.String}
        )
        rows_to_pass = int(total["rows_to_pass"].sum())
        tokens_to_pass = int(total["tokens_to_pass"].sum())
        context.log.info(
            f"{rows_to_pass:,} of {total['rows'].sum():,} rows would go through the model, about "
            f"{tokens_to_pass:,} tokens."
        )
        context.add_output_metadata(
            {
                "rows": int(total["rows"].sum()),
                "rows_to_pass": rows_to_pass,
                "tokens_to_pass": tokens_to_pass,
                "shards": dg.MetadataValue.table(
                    [dg.TableRecord(record) for record in records[:1000]],
                    dg.TableSchema(
                        [dg.TableColumn("shard"), *(dg.TableColumn(n, "int") for n in _COLUMNS[1:])]
                    ),
                ),
            }
        )

    @dg.job(
        name=naming.name("estimate"),
        description="Count the rows and tokens that would go through the model, before a backfill.",
    )
    def estimate() -> None:
        count_rows()

    return estimate
