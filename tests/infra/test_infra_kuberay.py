"""The Kubernetes manifests: known fields, references that hold, confined pods, our own command line."""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from camworker import __version__
from jobs.cli import make_parser
from support.infra_files import INFRA, camworker_arguments, documents, find_object, kubernetes_objects, pinned

KUBERNETES = "1.33"

# Of KubeRay's fields those that we use; POD is a pod template, which Kubernetes' own schema judges.
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


def check(value: Any, allowed: Any, where: str) -> None:
    """Raise AssertionError for a field that is not among those allowed, or is of another type."""
    if allowed is POD:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **value}, KUBERNETES, strict=True)
    elif isinstance(allowed, list):
        for index, item in enumerate(value):
            check(item, allowed[0], f"{where}[{index}]")
    elif isinstance(allowed, dict):
        assert set(value) <= set(allowed), f"{where}: {set(value) - set(allowed)}"
        for name, item in value.items():
            check(item, allowed[name], f"{where}.{name}")
    else:
        assert type(value) is allowed, f"{where} is {value!r}"


def pod_specs() -> dict[str, dict[str, Any]]:
    """The spec of every pod that our manifests lead to."""
    job = find_object("RayJob")["spec"]
    cluster = job["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
        "submitter": job["submitterPodTemplate"]["spec"],
        "nightly": find_object("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"],
    }


def test_the_ray_job_has_known_fields_only() -> None:
    job = find_object("RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    check(job, RAY_JOB, "RayJob")


def test_the_ray_cron_job_has_known_fields_only() -> None:
    cron = find_object("RayCronJob")
    assert cron["apiVersion"] == "ray.io/v1"
    cron["spec"]["jobTemplate"] = find_object("RayJob")["spec"]  # as the kustomization fills it
    check(cron, RAY_CRON_JOB, "RayCronJob")


@pytest.mark.parametrize("path", [("backofLimit",), ("rayClusterSpec", "headGroupSpec", "template", "spek")])
def test_a_misspelt_field_is_found(path: tuple[str, ...]) -> None:
    job = copy.deepcopy(find_object("RayJob"))
    at = job["spec"]
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = 1
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(job, RAY_JOB, "RayJob")


@pytest.mark.parametrize(
    ("path", "thing"),
    [(path, thing) for path, thing in kubernetes_objects() if not thing["apiVersion"].startswith("ray.io/")],
    ids=lambda value: value.name if isinstance(value, Path) else value["kind"],
)
def test_core_objects_obey_the_schema_of_kubernetes(path: Path, thing: dict[str, Any]) -> None:
    kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "kustomization", sorted(INFRA.rglob("kustomization.yaml")), ids=lambda path: path.parent.name
)
def test_what_a_kustomization_names_exists(kustomization: Path) -> None:
    (content,) = documents(kustomization)
    kinds = set()
    for name in content["resources"]:
        path = kustomization.parent / name
        assert path.is_file() or (path / "kustomization.yaml").is_file(), name
        # kustomize refuses files above a kustomization, and folders that hold it.
        assert path.is_dir() or path.resolve().is_relative_to(kustomization.parent)
        kinds |= (
            {thing["kind"] for file in path.rglob("*.yaml") for thing in documents(file)}
            if path.is_dir()
            else set()
        )
        kinds |= {thing["kind"] for thing in documents(path)} if path.is_file() else set()
    for made in content.get("configMapGenerator", []):
        assert all((kustomization.parent / name).is_file() for name in made["files"])
    assert {patch["target"]["kind"] for patch in content.get("patches", [])} <= kinds
    for replacement in content.get("replacements", []):
        assert replacement["source"]["name"] == find_object(replacement["source"]["kind"])["metadata"]["name"]
        assert {target["select"]["kind"] for target in replacement["targets"]} <= kinds


def test_every_account_and_config_map_that_a_pod_uses_is_made() -> None:
    accounts = {
        thing["metadata"]["name"] for _, thing in kubernetes_objects() if thing["kind"] == "ServiceAccount"
    }
    assert {spec["serviceAccountName"] for spec in pod_specs().values()} == accounts
    made = {
        config_map["name"]: set(config_map["files"])
        for path in INFRA.rglob("kustomization.yaml")
        for config_map in documents(path)[0].get("configMapGenerator", [])
    }
    nightly = pod_specs()["nightly"]
    volumes = {volume["name"]: made[volume["configMap"]["name"]] for volume in nightly["volumes"]}
    (container,) = nightly["containers"]
    mounted = {
        f"{mount['mountPath']}/{file}"
        for mount in container["volumeMounts"]
        for file in volumes[mount["name"]]
    }
    assert set(container["command"][1:]) == mounted


def test_the_nightly_pod_may_create_and_get_ray_jobs_and_nothing_else() -> None:
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
def test_pods_are_as_the_restricted_standard_asks(pod: str) -> None:
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


def test_the_cluster_is_one_that_a_job_can_rely_on() -> None:
    job = find_object("RayJob")["spec"]
    cluster = job["rayClusterSpec"]
    head, worker = pod_specs()["head"], pod_specs()["worker"]
    assert job["shutdownAfterJobFinishes"] is True  # Kueue's condition
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


def test_a_night_does_not_begin_before_the_last_one_ended() -> None:
    cron = find_object("CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    # The RayJob ends before the next night, or is ended.
    assert find_object("RayJob")["spec"]["activeDeadlineSeconds"] < 24 * 3600
    assert cron["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_entry_point_is_a_command_of_ours() -> None:
    arguments = camworker_arguments(find_object("RayJob")["spec"]["entrypoint"])
    assert arguments is not None
    asked = make_parser().parse_args(arguments)
    assert asked.command == "localize"
    assert asked.output == "s3://my-labels/photos"
