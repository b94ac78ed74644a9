"""The Dagster side: resources, assets, checks, jobs and sensors, and what assembles them."""
