"""What a user of the graph decides: sources, resources, policies, plan."""
