"""The Kubernetes manifests: known fields, valid references, confined pods, a valid command line."""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from camworker import __version__
from jobs.cli import make_parser
from support.infra_files import INFRA, camworker_arguments, documents, find_object, kubernetes_objects, pinned

KUBERNETES = "1.33"

# The fields of KubeRay that are used here. POD is a pod template, which the schema of Kubernetes checks.
POD = object()
RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": str,
        "upscalingMode": str,
        "idleTimeoutSeconds": int,
        "resources": {"requests": dict, "limits": dict},
        "securityContext": dict,
    },
    "headGroupSpec": {"rayStartParams": dict, "template": POD},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": dict,
            "template": POD,
        }
    ],
}
RAY_JOB_SPEC = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": RAY_CLUSTER,
    "submitterPodTemplate": POD,
}
METADATA = {"name": str, "namespace": str}
RAY_JOB = {"apiVersion": str, "kind": str, "metadata": METADATA, "spec": RAY_JOB_SPEC}
RAY_CRON_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": METADATA,
    "spec": {"schedule": str, "timeZone": str, "suspend": bool, "jobTemplate": RAY_JOB_SPEC},
}


def check(value: Any, allowed: Any, path: str) -> None:
    """Raise AssertionError for a field that is not allowed or that has another type.

    Args:
        value: A part of a manifest.
        allowed: Its type, the types of its fields, a list with that of its items, or POD.
        path: Where the value is in the manifest, for the message.
    """
    if allowed is POD:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **value}, KUBERNETES, strict=True)
    elif isinstance(allowed, list):
        for index, item in enumerate(value):
            check(item, allowed[0], f"{path}[{index}]")
    elif isinstance(allowed, dict):
        assert set(value) <= set(allowed), f"{path}: {set(value) - set(allowed)}"
        for name, item in value.items():
            check(item, allowed[name], f"{path}.{name}")
    else:
        assert type(value) is allowed, f"{path} is {value!r}"


def pod_specs() -> dict[str, dict[str, Any]]:
    """Return the specification of every pod that the manifests create."""
    job = find_object("RayJob")["spec"]
    cluster = job["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
        "submitter": job["submitterPodTemplate"]["spec"],
        "nightly": find_object("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"],
    }


def test_ray_job_has_only_known_fields() -> None:
    job = find_object("RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    check(job, RAY_JOB, "RayJob")


def test_ray_cron_job_has_only_known_fields() -> None:
    cron = find_object("RayCronJob")
    assert cron["apiVersion"] == "ray.io/v1"
    cron["spec"]["jobTemplate"] = find_object("RayJob")["spec"]  # the kustomization does the same
    check(cron, RAY_CRON_JOB, "RayCronJob")


@pytest.mark.parametrize("path", [("backofLimit",), ("rayClusterSpec", "headGroupSpec", "template", "spek")])
def test_misspelt_field_is_reported(path: tuple[str, ...]) -> None:
    job = copy.deepcopy(find_object("RayJob"))
    parent = job["spec"]
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = 1
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(job, RAY_JOB, "RayJob")


@pytest.mark.parametrize(
    ("path", "manifest"),
    [
        (path, manifest)
        for path, manifest in kubernetes_objects()
        if not manifest["apiVersion"].startswith("ray.io/")
    ],
    ids=lambda value: value.name if isinstance(value, Path) else value["kind"],
)
def test_core_objects_match_the_schema_of_kubernetes(path: Path, manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "kustomization", sorted(INFRA.rglob("kustomization.yaml")), ids=lambda path: path.parent.name
)
def test_files_named_in_a_kustomization_exist(kustomization: Path) -> None:
    (content,) = documents(kustomization)
    kinds = set()
    for name in content["resources"]:
        path = kustomization.parent / name
        assert path.is_file() or (path / "kustomization.yaml").is_file(), name
        # kustomize refuses files outside the folder of the kustomization, and folders that contain it.
        assert path.is_dir() or path.resolve().is_relative_to(kustomization.parent)
        kinds |= (
            {manifest["kind"] for file in path.rglob("*.yaml") for manifest in documents(file)}
            if path.is_dir()
            else set()
        )
        kinds |= {manifest["kind"] for manifest in documents(path)} if path.is_file() else set()
    for config_map in content.get("configMapGenerator", []):
        assert all((kustomization.parent / name).is_file() for name in config_map["files"])
    assert {patch["target"]["kind"] for patch in content.get("patches", [])} <= kinds
    for replacement in content.get("replacements", []):
        assert replacement["source"]["name"] == find_object(replacement["source"]["kind"])["metadata"]["name"]
        assert {target["select"]["kind"] for target in replacement["targets"]} <= kinds


def test_accounts_and_config_maps_of_the_pods_exist() -> None:
    accounts = {
        manifest["metadata"]["name"]
        for _, manifest in kubernetes_objects()
        if manifest["kind"] == "ServiceAccount"
    }
    assert {spec["serviceAccountName"] for spec in pod_specs().values()} == accounts
    generated = {
        config_map["name"]: set(config_map["files"])
        for path in INFRA.rglob("kustomization.yaml")
        for config_map in documents(path)[0].get("configMapGenerator", [])
    }
    nightly = pod_specs()["nightly"]
    volumes = {volume["name"]: generated[volume["configMap"]["name"]] for volume in nightly["volumes"]}
    (container,) = nightly["containers"]
    mounted = {
        f"{mount['mountPath']}/{file}"
        for mount in container["volumeMounts"]
        for file in volumes[mount["name"]]
    }
    assert set(container["command"][1:]) == mounted


def test_nightly_pod_may_only_create_and_get_ray_jobs() -> None:
    assert find_object("Role")["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    binding = find_object("RoleBinding")
    assert binding["roleRef"]["name"] == find_object("Role")["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [
        pod_specs()["nightly"]["serviceAccountName"]
    ]
    assert find_object("ServiceAccount", "camworker-worker")["automountServiceAccountToken"] is False


@pytest.mark.parametrize("pod", ["head", "worker", "submitter", "nightly"])
def test_pods_meet_the_restricted_standard(pod: str) -> None:
    spec = pod_specs()[pod]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    contexts = [container["securityContext"] for container in spec["containers"]]
    if pod == "head":
        contexts.append(
            find_object("RayJob")["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
        )
    for context in contexts:
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert all(container["resources"]["limits"]["memory"] for container in spec["containers"])
    assert find_object("Namespace")["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }


def test_cluster_has_the_settings_that_a_job_relies_on() -> None:
    job = find_object("RayJob")["spec"]
    cluster = job["rayClusterSpec"]
    head, worker = pod_specs()["head"], pod_specs()["worker"]
    assert job["shutdownAfterJobFinishes"] is True  # Kueue requires this
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    environment = {entry["name"]: entry["value"] for entry in head["containers"][0]["env"]}
    assert 20 <= int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) < head["terminationGracePeriodSeconds"]
    images = {spec["containers"][0]["image"] for name, spec in pod_specs().items() if name != "nightly"}
    assert images == {f"registry.example.com/camworker:{__version__}-cuda"}
    resources = worker["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"


def test_nightly_runs_do_not_overlap() -> None:
    cron = find_object("CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    # The RayJob ends, or is stopped, before the next night.
    assert find_object("RayJob")["spec"]["activeDeadlineSeconds"] < 24 * 3600
    assert cron["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_entry_point_is_a_valid_command_line() -> None:
    arguments = camworker_arguments(find_object("RayJob")["spec"]["entrypoint"])
    assert arguments is not None
    parsed = make_parser().parse_args(arguments)
    assert parsed.command == "localize"
    assert parsed.output == "s3://my-labels/photos"
