"""What `jobs.ray_cluster` uses of Ray without being documented: each test fails when Ray changes it."""

import ast
import inspect
import mmap
from pathlib import Path

import pytest
import ray
from ray import exceptions
from ray._private import ray_constants, services
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.state import available_resources_per_node
from ray.dashboard.modules import dashboard_sdk
from ray.dashboard.modules.job import job_supervisor, sdk
from ray.dashboard.modules.job.common import JobErrorType

from camworker.errors import CommitError
from jobs import ray_cluster
from support.paths import ROOT


def test_ray_binds_to_loopback_when_clusters_are_disabled() -> None:
    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert "if not ray_constants.ENABLE_RAY_CLUSTER:" in inspect.getsource(services)


def test_available_resources_need_no_argument() -> None:
    assert not inspect.signature(available_resources_per_node).parameters


def test_names_of_variables_and_loggers() -> None:
    assert ray_cluster._JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
    assert f'"{ray_cluster.JOB_STOP_VARIABLE}"' in inspect.getsource(job_supervisor)
    assert sdk.logger.name == ray_cluster.JOBS_LOGGER


def test_the_errors_of_jobs_that_never_started_exist() -> None:
    assert {error.value for error in JobErrorType} >= ray_cluster.NOT_STARTED_ERRORS


def test_errors_of_the_job_client_name_the_http_status() -> None:
    assert 'f"Request failed with status code {r.status_code}: {r.text}."' in inspect.getsource(dashboard_sdk)
    assert ray_cluster.http_status(RuntimeError("Request failed with status code 404: no job.")) == 404
    assert ray_cluster.http_status(RuntimeError("closed")) is None


def test_the_reason_of_a_loss_is_the_last_line_without_common_causes() -> None:
    with open(Path(ray.__file__).parent / "core/src/ray/raylet/raylet", "rb") as file:
        raylet = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert raylet.find(ray_cluster._COMMON_CAUSES.encode()) >= 0
    message = "The actor died.\n\tpid: 7\nThe worker process has died. Some common causes include: memory."
    assert ray_cluster.loss_reason(RuntimeError(message)) == "The worker process has died."
    assert ray_cluster.loss_reason(RuntimeError()) == "RuntimeError"


def test_an_actor_that_failed_in_its_constructor_says_so() -> None:
    failed = exceptions.RayActorError(actor_init_failed=True)
    assert ray_cluster.failed_in_constructor(failed)
    assert not ray_cluster.failed_in_constructor(exceptions.RayActorError())


@pytest.mark.parametrize("cause", [CommitError("changed"), ValueError("wrong")])
def test_a_failed_task_keeps_its_cause(cause: Exception) -> None:
    error = ray_cluster.original_error(exceptions.RayTaskError("run", "Traceback\n  lines", cause))
    assert isinstance(error, type(cause))
    # An error of camworker is shown in one line, any other one with its traceback.
    assert (str(error) == "changed") == isinstance(cause, CommitError)


def test_no_other_module_imports_private_modules_of_ray() -> None:
    private = set()
    for path in (ROOT / "jobs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("ray.") and "._" in name for name in names):
                private.add(path.name)
    assert private == {"ray_cluster.py"}
