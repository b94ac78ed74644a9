"""A runnable Dagster project on top of the plugin: its data, its valuation pipeline, a demo run."""
