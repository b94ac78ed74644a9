"""The checks of the graph, and how a shard is judged."""
