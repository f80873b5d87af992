"""Ids, entrypoints, paths and manifests of submit, without a cluster."""

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from camworker.errors import UsageError
from jobs.cli import COMMANDS, make_parser
from jobs.submit.command import _MANIFEST
from jobs.submit.job_spec import (
    NOT_UPLOADABLE,
    UPLOADABLE,
    Manifest,
    check_paths,
    entrypoint,
    next_run,
    rayjob,
    runs_of,
    submission_id,
)
from jobs.submit.kuberay import as_yaml, read_manifest

LOCALIZE = "localize s3://b/in --output s3://b/out"


def parsed(command: str) -> dict[str, object]:
    return vars(make_parser().parse_args(shlex.split(command)))


def test_the_id_does_not_depend_on_how_a_command_is_written() -> None:
    name = submission_id(parsed(LOCALIZE))
    assert name.startswith("camworker-localize-")
    assert len(name) == len("camworker-localize-") + 12
    same = [
        "localize --output s3://b/out s3://b/in",
        "localize --output=s3://b/out s3://b/in --json",
        f"{LOCALIZE} --preset default --top-k 5 --verbose",
    ]
    assert {submission_id(parsed(command)) for command in same} == {name}


def test_another_command_has_another_id() -> None:
    others = [
        LOCALIZE,
        "localize s3://b/in --output s3://b/out2",
        f"{LOCALIZE} --limit 10",
        f"{LOCALIZE} --retry-failed",
        f"{LOCALIZE} --max-error-rate 0",
        f"{LOCALIZE} --seed 1",
        f"{LOCALIZE} --gpus-per-worker 0",
        "status s3://b/out",
    ]
    assert len({submission_id(parsed(command)) for command in others}) == len(others)


def test_no_id_exceeds_the_longest_name_of_a_rayjob() -> None:
    longest = max(COMMANDS, key=len)
    name = submission_id({"command": longest, "run": print})
    assert len(f"{name}-9999") <= 47


def test_runs_are_numbered() -> None:
    assert next_run("camworker-x-1a", []) == "camworker-x-1a"
    assert next_run("camworker-x-1a", ["camworker-x-1a", "other"]) == "camworker-x-1a-2"
    taken = ["camworker-x-1a-10", "camworker-x-1a-2", "camworker-x-1a-x", "camworker-x-1a-2-3"]
    assert runs_of("camworker-x-1a", taken) == {2: "camworker-x-1a-2", 10: "camworker-x-1a-10"}
    assert next_run("camworker-x-1a", taken) == "camworker-x-1a-11"


def test_the_entrypoint_survives_a_shell() -> None:
    argv = ["localize", "s3://b/a b/$(x)", "--output", "s3://b/it's"]
    assert shlex.split(entrypoint(argv, from_clone=False)) == ["camworker", *argv]
    assert shlex.split(entrypoint(argv, from_clone=True)) == ["python", "-m", "jobs.cli", *argv]


def test_every_argument_that_names_a_path_is_known() -> None:
    """Otherwise, submit would send a local path to nodes on which it does not exist."""
    paths = {
        "INPUT",
        "OUT",
        "OUT_OR_INPUT",
        "FILE",
        "DIR",
        "PATH",
        "PACKAGE",
        "WEIGHTS",
        "DATASET",
        "A,B or FILE",
    }
    (commands,) = (action for action in make_parser()._actions if action.dest == "command")
    path_arguments = {
        action.dest
        for name, parser in commands.choices.items()
        for action in parser._actions
        if name != "submit" and action.metavar in paths
    }
    assert path_arguments == UPLOADABLE | NOT_UPLOADABLE


class TestPaths:
    def test_nothing_is_required_of_s3(self) -> None:
        assert check_paths(parsed(f"{LOCALIZE} --weights s3://b/w --image-labels s3://b/l.csv"), None) == []
        assert check_paths(parsed(f"{LOCALIZE} --weights DEFAULT"), None) == []
        assert (
            check_paths(parsed("export s3://b/out --format coco --to s3://b/x --classes cat,dog"), None) == []
        )

    def test_absolute_paths_have_to_exist_on_every_node(self) -> None:
        notes = check_paths(
            parsed("localize /data/in --output s3://b/out --local-root /a --local-root /b"), None
        )
        assert [note.split()[0] for note in notes] == ["/data/in", "/a", "/b"]

    @pytest.mark.parametrize(
        "command",
        [
            "localize photos --output s3://b/out",
            "localize s3://b/in --output out",
            f"{LOCALIZE} --image-labels labels.csv",
            "summarize s3://b/out --truth boxes.csv",
            "demo",
        ],
    )
    def test_relative_paths_are_refused(self, command: str) -> None:
        with pytest.raises(UsageError, match="is a path of this machine: use s3://"):
            check_paths(parsed(command), None)

    def test_labels_and_truth_may_be_in_the_clone(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("image_id,label\n")
        assert check_paths(parsed(f"{LOCALIZE} --image-labels labels.csv"), str(tmp_path)) == []
        with pytest.raises(UsageError, match=r"absent.csv is not in "):
            check_paths(parsed(f"{LOCALIZE} --image-labels absent.csv"), str(tmp_path))
        (tmp_path / "photos").mkdir()
        for command in ("localize s3://b/in --output photos", "localize photos --output s3://b/out"):
            with pytest.raises(UsageError, match="photos is a path of this machine"):
                check_paths(parsed(command), str(tmp_path))


HEAD = {"containers": [{"name": "head", "image": "old"}, {"name": "proxy", "image": "proxy"}]}
BASE: Manifest = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "base", "namespace": "theirs", "labels": {"a": "b"}},
    "spec": {
        "entrypoint": "old",
        "rayClusterSpec": {
            "headGroupSpec": {"template": {"spec": HEAD}},
            "workerGroupSpecs": [{"template": {"spec": {"containers": [{"image": "old"}]}}}],
        },
        "submitterPodTemplate": {"spec": {"containers": [{"image": "old"}]}},
    },
}
NO_OPTIONS: dict[str, Any] = {"namespace": None, "image": None, "driver_cpus": 0, "driver_resources": {}}


class TestRayJob:
    def test_only_name_and_command_are_replaced(self) -> None:
        before = copy.deepcopy(BASE)
        job = rayjob(BASE, "camworker-x-1", "camworker x 'a b'", **NO_OPTIONS)
        assert before == BASE
        assert job["metadata"] == {"name": "camworker-x-1", "namespace": "theirs", "labels": {"a": "b"}}
        assert job["spec"].pop("entrypoint") == "camworker x 'a b'"
        before["spec"].pop("entrypoint")
        assert job["spec"] == before["spec"]

    def test_the_image_replaces_those_of_all_pods_and_of_no_sidecar(self) -> None:
        options = {"namespace": "ours", "image": "new", "driver_cpus": 0.5, "driver_resources": {"head": 1.0}}
        job = rayjob(BASE, "n", "c", **options)
        spec = job["spec"]
        head, worker = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"][0]
        assert [c["image"] for c in head["template"]["spec"]["containers"]] == ["new", "proxy"]
        assert worker["template"]["spec"]["containers"][0]["image"] == "new"
        assert spec["submitterPodTemplate"]["spec"]["containers"][0]["image"] == "new"
        assert job["metadata"]["namespace"] == "ours"
        assert (spec["entrypointNumCpus"], json.loads(spec["entrypointResources"])) == (0.5, {"head": 1.0})

    @pytest.mark.parametrize("base", [{}, {"kind": "RayJob", "spec": {}}, {**BASE, "kind": "RayCluster"}])
    def test_another_manifest_is_refused(self, base: Manifest) -> None:
        with pytest.raises(UsageError, match="is not a RayJob"):
            rayjob(base, "n", "c", **NO_OPTIONS)

    def test_the_printed_manifest_is_complete(self) -> None:
        base = read_manifest(str(_MANIFEST))
        job = rayjob(base, "n", entrypoint(["localize", "s3://b/a: #b"], from_clone=False), **NO_OPTIONS)
        printed = as_yaml(job)
        assert yaml.safe_load(printed) == job
        assert "&" not in printed  # no anchors, which other tools need not understand

    def test_a_file_that_is_not_a_manifest_is_refused(self, tmp_path: Path) -> None:
        for text in ("a: [", "- 1", ""):
            Path(tmp_path / "m.yaml").write_text(text)
            with pytest.raises(UsageError, match=r"m\.yaml"):
                read_manifest(str(tmp_path / "m.yaml"))
