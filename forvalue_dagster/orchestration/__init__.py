"""The Dagster side: resources, assets, checks, jobs and sensors, and what assembles them."""

from dagster_shared.libraries import DagsterLibraryRegistry

from forvalue_dagster import __version__

DagsterLibraryRegistry.register("forvalue-dagster", __version__, is_dagster_package=False)
