"""The runnable project: what `dagster dev -w workspace.yaml` loads."""

from assets.valuation import DEMO_ROOT, demo_definitions

defs = demo_definitions(DEMO_ROOT)
