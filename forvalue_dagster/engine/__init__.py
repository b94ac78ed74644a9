"""The pass itself: rows in, scores out; no Dagster."""
