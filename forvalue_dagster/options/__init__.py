"""Every option, written once; neither torch nor Dagster is loaded to name one."""
