"""The checks of the graph, and the verdicts on shards."""
