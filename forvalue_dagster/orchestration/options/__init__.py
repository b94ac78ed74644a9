"""Options of the graph: sources, resources, policies and plan."""
