"""Whether data may pass: expectations on rows, verdicts on shards."""
