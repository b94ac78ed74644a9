"""What runs when: conditions, sensors, and the jobs of upkeep."""
