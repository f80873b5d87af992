"""The files for AWS: Ray accepts the cluster file, and roles can neither replace nor delete objects."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from camworker import __version__
from support.infra_files import INFRA

AWS = INFRA / "aws"
POLICIES = sorted((AWS / "policies").glob("*.json"))
ACTIONS = {
    "reader": {"s3:GetObject", "s3:ListBucket"},
    "driver": {"s3:PutObject"},
    "worker": {"s3:PutObject"},
    "launcher": {
        *("ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeImages"),
        *("ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "iam:PassRole"),
    },
}


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def statements(policy: Path) -> list[dict[str, Any]]:
    content = json.loads(policy.read_text())
    assert set(content) == {"Version", "Statement"}
    assert content["Version"] == "2012-10-17"
    return content["Statement"]


def cluster() -> dict[str, Any]:
    return yaml.safe_load((AWS / "cluster.yaml").read_text())


def roles() -> dict[str, set[str]]:
    """Return the roles that setup.sh creates, with their policies."""
    lines = re.findall(r"^make_role (\S+) ([^#\n]+)", (AWS / "setup.sh").read_text(), re.MULTILINE)
    return {role: set(policies.split()) for role, policies in lines}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.stem)
def test_policy_allows_only_listed_actions_on_named_resources(policy: Path) -> None:
    entries = statements(policy)
    assert {action for entry in entries for action in as_list(entry["Action"])} == ACTIONS[policy.stem]
    for entry in entries:
        assert set(entry) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        assert re.fullmatch(r"[A-Za-z0-9]+", entry["Sid"])
        assert entry["Effect"] == "Allow"
        for action in as_list(entry["Action"]):
            assert "*" not in action
            assert not re.search(r":(Delete|Put\w*(Acl|Policy|Retention))", action)
        for resource in as_list(entry["Resource"]):
            # Actions that describe machines cannot be restricted to some of them.
            describes = all(action.startswith("ec2:Describe") for action in as_list(entry["Action"]))
            assert resource.startswith("arn:aws:") or (describes and resource == "*")


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.stem)
def test_policies_allow_to_create_objects_but_not_to_replace_them(policy: Path) -> None:
    for entry in statements(policy):
        if "s3:PutObject" in as_list(entry["Action"]):
            assert entry["Action"] == "s3:PutObject"
            assert entry["Condition"] == {"Null": {"s3:if-none-match": "false"}}
            assert all(name.startswith("arn:aws:s3:::my-labels/photos/") for name in entry["Resource"])


def test_workers_may_create_only_parts() -> None:
    (entry,) = statements(AWS / "policies/worker.json")
    assert entry["Resource"] == ["arn:aws:s3:::my-labels/photos/predictions/*"]


def test_listing_is_restricted_to_the_prefixes() -> None:
    (listing,) = [
        entry for entry in statements(AWS / "policies/reader.json") if entry["Action"] == "s3:ListBucket"
    ]
    assert listing["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["photos", "photos/*"]}}


def test_head_may_terminate_only_machines_of_its_cluster() -> None:
    bound = {
        action: entry["Condition"]
        for entry in statements(AWS / "policies/launcher.json")
        for action in as_list(entry["Action"])
        if action in ("ec2:TerminateInstances", "iam:PassRole")
    }
    name = cluster()["cluster_name"]
    assert bound["ec2:TerminateInstances"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": name}}
    assert bound["iam:PassRole"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_roles_use_exactly_the_existing_policies() -> None:
    created = roles()
    assert set(created) == {"camworker-reader", "camworker-worker", "camworker-driver", "camworker-head"}
    assert set.union(*created.values()) == {path.stem for path in POLICIES}
    assert created["camworker-worker"] == {"reader", "worker"}


def test_only_ec2_and_eks_may_assume_a_role() -> None:
    trust = json.loads((AWS / "trust.json").read_text())
    assert {entry["Principal"]["Service"] for entry in trust["Statement"]} == {
        "ec2.amazonaws.com",
        "pods.eks.amazonaws.com",
    }


def test_cluster_file_matches_the_schema_of_ray() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(cluster())
    misspelt = cluster()
    misspelt["available_node_types"]["gpu"]["min_wokers"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(misspelt)


def test_head_runs_no_workers_and_gpu_nodes_are_spot_instances() -> None:
    content = cluster()
    head, gpu = content["available_node_types"]["head"], content["available_node_types"]["gpu"]
    assert content["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] <= gpu["max_workers"] <= content["max_workers"]
    profiles = {node["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2] for node in (head, gpu)}
    assert profiles == {"camworker-head", "camworker-worker"} <= set(roles())


def test_cluster_requires_a_token_and_lets_jobs_drain() -> None:
    content = cluster()
    options = " ".join(content["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    assert int(re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", options)[0]) >= 20
    assert content["docker"]["image"] == f"registry.example.com/camworker:{__version__}-cuda"
    assert any("--dashboard-host=127.0.0.1" in line for line in content["head_start_ray_commands"])
    for node in content["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]  # without it Ray admits ssh from everywhere
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


@pytest.mark.parametrize("script", sorted(INFRA.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_and_are_executable(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111
