"""Forward passes over rows, and scores from them; no Dagster."""
