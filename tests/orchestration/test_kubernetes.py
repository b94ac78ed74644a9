"""The example for Kubernetes: the pods its steps get, and whether its files fit together.

No cluster is needed: the jobs are those that the executor would hand to the cluster's API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.context.system import PlanData, PlanOrchestrationContext
from dagster._core.executor.step_delegating import StepHandlerContext
from dagster._core.log_manager import DagsterLogManager
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._grpc.types import ExecuteStepArgs

pytest.importorskip("dagster_k8s")

from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.executor import K8sStepHandler
from kubernetes import client, config

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kubernetes"
DOCKERFILE, README, VALUES_TEXT = (
    (EXAMPLE / name).read_text("utf-8") for name in ("Dockerfile", "README.md", "values.yaml")
)
VALUES = yaml.safe_load(VALUES_TEXT)
USER = VALUES["dagster-user-deployments"]
(DEPLOYMENT,) = USER["deployments"]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
ACCOUNT = USER["serviceAccount"]["name"]
IMAGE = f"{DEPLOYMENT['image']['repository']}:{DEPLOYMENT['image']['tag']}"
ARGUMENTS = DEPLOYMENT["dagsterApiGrpcArgs"]
CODE = dict(zip(ARGUMENTS[::2], ARGUMENTS[1::2], strict=True))
MODULE, FOLDER = CODE["--module-name"], CODE["--working-directory"]

# (job, step)
GPU_STEPS = [
    ("forvalue_profile", "validation_profile"),
    ("forvalue_shard", "sample_features"),
    ("forvalue_shard", "value_scores_feature_fidelity"),
]
CPU_STEPS = [
    ("forvalue_shard", "raw_finetuning_data"),
    ("forvalue_shard", "value_scores"),
    ("forvalue_filter", "forvalue_select_rows"),
]

Pod = dict[str, Any]
Launch = Callable[[str, str], Pod]


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    spec = spec_from_file_location("kubernetes_example", EXAMPLE / f"{MODULE}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.defs


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance configured as the chart configures it from values.yaml."""
    assert VALUES["concurrency"]["enabled"]
    pools, runs = VALUES["concurrency"]["pools"], VALUES["concurrency"]["runs"]
    monitoring = VALUES["dagsterDaemon"]["runMonitoring"]
    settings = {
        "run_launcher": {
            "module": "dagster_k8s",
            "class": VALUES["runLauncher"]["type"],
            "config": {
                "service_account_name": "dagster",
                "instance_config_map": "dagster-instance",
                "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
                "job_namespace": "dagster",
                "image_pull_policy": LAUNCHER["imagePullPolicy"],
                "resources": LAUNCHER["resources"],
            },
        },
        "concurrency": {
            "pools": {
                "default_limit": pools["defaultLimit"],
                "granularity": pools["granularity"],
            },
            "runs": {"max_concurrent_runs": runs["maxConcurrentRuns"]},
        },
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
    }
    with pytest.MonkeyPatch.context() as patch, dg.instance_for_test(overrides=settings) as made:
        patch.setattr(config, "load_incluster_config", lambda *_, **__: None)
        yield made


@pytest.fixture(scope="module")
def launch(defs: dg.Definitions, instance: dg.DagsterInstance) -> Launch:
    """Have the executor's own step handler launch a step, and return the pod it asks for."""

    def launched(job_name: str, key: str) -> Pod:
        job = defs.resolve_job_def(job_name)
        # What the code server tells of itself, with includeConfigInLaunchedRuns.
        assert DEPLOYMENT["includeConfigInLaunchedRuns"]["enabled"]
        repository = RepositoryPythonOrigin(
            executable_path="python",
            code_pointer=ModuleCodePointer(MODULE, "defs", FOLDER),
            container_image=IMAGE,
            container_context={"k8s": {"service_account_name": ACCOUNT, "namespace": "dagster"}},
        )
        origin = JobPythonOrigin(job_name, repository)
        run = instance.create_run_for_job(job, job_code_origin=origin)
        plan = create_execution_plan(job)
        api = MagicMock()
        handler = K8sStepHandler(
            image=None,
            container_context=K8sContainerContext(),
            load_incluster_config=True,
            kubeconfig_file=None,
            k8s_client_batch_api=api,
        )
        log = DagsterLogManager.create(loggers=[], dagster_run=run)
        context = PlanOrchestrationContext(PlanData(job, run, instance, plan), log, None, None)
        step = plan.get_step_by_key(key)
        arguments = ExecuteStepArgs(origin, run.run_id, [key])
        # The job is created when the events have been taken.
        list(handler.launch_step(StepHandlerContext(instance, context, [step], arguments, run)))
        body = api.create_namespaced_job.call_args.kwargs["body"]
        return client.ApiClient().sanitize_for_serialization(body)["spec"]["template"]["spec"]

    return launched


@pytest.mark.parametrize(("job", "step"), GPU_STEPS)
def test_a_step_with_a_model_gets_a_gpu(job: str, step: str, launch: Launch) -> None:
    pod = launch(job, step)
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "24Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "24Gi"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert (container["image"], pod["serviceAccountName"]) == (IMAGE, ACCOUNT)


@pytest.mark.parametrize(("job", "step"), CPU_STEPS)
def test_a_step_without_a_model_leaves_the_gpus_alone(job: str, step: str, launch: Launch) -> None:
    pod = launch(job, step)
    (container,) = pod["containers"]
    assert container["resources"] == LAUNCHER["resources"]
    assert "nvidia.com/gpu" not in str(pod)
    assert pod.keys().isdisjoint({"nodeSelector", "tolerations"})
    assert (container["image"], pod["serviceAccountName"]) == (IMAGE, ACCOUNT)


def test_every_job_runs_its_steps_in_pods_and_its_gpu_steps_in_the_pool(
    defs: dg.Definitions,
) -> None:
    dg.Definitions.validate_loadable(defs)
    in_pool, tagged = set(), set()
    for name in ("forvalue_profile", "forvalue_shard", "forvalue_filter"):
        job = defs.resolve_job_def(name)
        assert job.executor_def.name == "k8s"
        for step in create_execution_plan(job).get_all_steps_in_topo_order():
            in_pool |= {(name, step.key, pool) for pool in [step.pool] if pool}
            tagged |= {(name, step.key)} if "dagster-k8s/config" in step.tags else set()
    assert tagged == set(GPU_STEPS)
    assert in_pool == {(*step, "gpu") for step in GPU_STEPS}


def test_the_pool_is_limited(instance: dg.DagsterInstance) -> None:
    pools = instance.event_log_storage.get_pool_config()
    assert pools.default_pool_limit == 1
    assert pools.pool_granularity is not None
    assert pools.pool_granularity.value == "op"
    # Chart and instance limit all pools alike: a name stands only where one gets its own limit.
    named = re.findall(r"dagster instance concurrency set (\S+)", VALUES_TEXT + README)
    assert set(named) == {"gpu"}
    assert len(named) == 2


def test_the_code_server_finds_the_definitions() -> None:
    assert (EXAMPLE / f"{MODULE}.py").is_file()
    source = f"examples/kubernetes/{MODULE}.py"
    assert f"COPY {source} {FOLDER}/{MODULE}.py" in DOCKERFILE
    for path in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / one).exists() for one in path.split())


def test_the_model_of_the_definitions_is_in_the_image(defs: dg.Definitions) -> None:
    assert defs.resources is not None
    assert f"RUN hf download {defs.resources['valuation'].name}\n" in DOCKERFILE


def test_the_readme_installs_what_was_built() -> None:
    assert f"-t {IMAGE} ." in README
    (chart,) = re.findall(r"--version (\S+)", README)
    constraints = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert f"dagster=={chart}" in constraints
    assert VALUES["global"]["postgresqlSecretName"] in README


def test_there_is_no_secret_in_the_files(defs: dg.Definitions) -> None:
    assert defs.resources is not None
    storage = defs.resources["storage"]
    assert storage.base_dir.startswith("s3://")
    assert (storage.s3, storage.storage_options) == (None, {})
    assert not re.search(r"access_?key|secret_?key|password:", VALUES_TEXT, re.IGNORECASE)
    assert "eks.amazonaws.com/role-arn" in USER["serviceAccount"]["annotations"]
