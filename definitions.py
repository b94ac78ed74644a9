"""The runnable project: what `dagster dev -w workspace.yaml` loads."""

import dagster as dg

from assets.finetuning import finetuning_definitions
from assets.valuation import DEMO_ROOT, demo_definitions

defs = dg.Definitions.merge(demo_definitions(DEMO_ROOT), finetuning_definitions(DEMO_ROOT))
