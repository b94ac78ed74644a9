"""Uses of the plugin beyond the demo: a deployment, the paper's experiments."""
