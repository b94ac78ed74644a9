"""Automation: conditions, sensors, schedules and maintenance jobs."""
