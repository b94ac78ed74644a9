"""All options, each defined once; they import neither torch nor Dagster."""
