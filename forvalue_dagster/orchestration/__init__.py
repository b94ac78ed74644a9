"""The Dagster side: resources, assets, checks, jobs, sensors, and the calls that assemble them."""

from dagster_shared.libraries import DagsterLibraryRegistry

from forvalue_dagster import __version__

DagsterLibraryRegistry.register("forvalue-dagster", __version__, is_dagster_package=False)
