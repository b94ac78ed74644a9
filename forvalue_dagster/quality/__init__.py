"""Quality of data: expectations on rows, verdicts on shards, the gate."""
