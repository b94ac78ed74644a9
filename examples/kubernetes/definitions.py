"""A project on Kubernetes: every step is a pod, and only the steps with a model wait for a GPU."""

import dagster as dg
from dagster_k8s import k8s_job_executor

import forvalue_dagster as fv

# Pods share no disk: rows come from the bucket, and everything that is made goes back to it.
BUCKET = "s3://example-bucket/forvalue"

GPU_POD = {
    "container_config": {
        "resources": {
            "requests": {"cpu": "4", "memory": "24Gi"},
            "limits": {"memory": "24Gi", "nvidia.com/gpu": "1"},
        }
    },
    "pod_spec_config": {
        "node_selector": {"nvidia.com/gpu.present": "true"},
        # GPU nodes carry this taint, which keeps every other pod off them.
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    },
}

defs = dg.Definitions.merge(
    fv.valuation_definitions(
        training_rows=fv.RowSource(path=f"{BUCKET}/train"),
        validation_rows=fv.RowSource(path=f"{BUCKET}/validation.jsonl"),
        # No keys: the pods' service account has an IAM role (values.yaml).
        storage=fv.Storage(base_dir=f"{BUCKET}/graph"),
        # The model that the Dockerfile puts into the image.
        valuation=fv.Valuation(name="Qwen/Qwen2.5-1.5B-Instruct"),
        compute=fv.Compute(
            # How many of these steps run at once, in all runs together, is the pool's limit.
            pool="gpu",
            op_tags={"dagster-k8s/config": GPU_POD},
            # A node may be taken away; what its pod has stored by then is not computed again.
            retry_policy=dg.RetryPolicy(max_retries=2, delay=30),
        ),
    ),
    dg.Definitions(executor=k8s_job_executor),
)
