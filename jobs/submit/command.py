"""Arguments and the run of `camworker submit`."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

from camworker.errors import UsageError
from jobs.console import DONE, INCOMPLETE, Console
from jobs.options import non_negative
from jobs.submit.job_spec import check_paths, entrypoint, rayjob, submission_id

if TYPE_CHECKING:
    from jobs.submit.ray_jobs import JobsApi

HELP = "run a command on a Ray cluster"

# In the repository this is a link to infra/kuberay/rayjob.yaml; a wheel contains the file itself.
_MANIFEST: Final = Path(__file__).with_name("rayjob.yaml")
# Added to the time that a job has to stop: the request has to arrive, and the end has to be seen.
_STOP_MARGIN_SECONDS: Final = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker submit`."""
    parser.usage = "camworker submit [options] -- COMMAND ..."
    parser.add_argument(
        "inner",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND ...",
        help="the command to run, as it would be typed after camworker",
    )
    parser.add_argument(
        "--cancel",
        nargs="?",
        const="",
        metavar="ID",
        help="stop the job ID, or the job that runs COMMAND; shards that are running are finished first",
    )
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the job is submitted")
    parser.add_argument(
        "--driver-cpus",
        type=non_negative,
        default=0.0,
        metavar="N",
        help="cores to reserve for the driver, which may then run on any node (default 0: on the head node)",
    )
    parser.add_argument(
        "--driver-resource",
        type=_resource,
        action="append",
        default=[],
        metavar="NAME=N",
        help="run the driver on a node with this Ray resource; may be repeated",
    )
    api = parser.add_argument_group("on a running cluster")
    api.add_argument(
        "--address",
        metavar="URL",
        help="URL of the dashboard (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )
    api.add_argument(
        "--working-dir",
        metavar="DIR",
        help="a clone of camworker to upload and run (default: the version installed on the nodes)",
    )
    kube = parser.add_argument_group("as a RayJob, with a cluster of its own")
    kube.add_argument("--kuberay", action="store_true", help="print the RayJob")
    kube.add_argument(
        "--apply", action="store_true", help="create the RayJob with kubectl instead of printing it"
    )
    kube.add_argument(
        "--manifest", metavar="FILE", help="the RayJob to start from (default: the one that is included)"
    )
    kube.add_argument("--image", help="image of the pods (default: the manifest's)")
    kube.add_argument("--namespace", help="namespace of the RayJob (default: the manifest's)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker submit`; return the exit code of the command that was run, if it was waited for."""
    argv = args.inner[1:] if args.inner[:1] == ["--"] else args.inner
    _refuse_contradictions(args, argv)
    base = _submission_id(argv, args, console) if argv else ""
    if args.kuberay:
        return _kuberay(args, console, base, argv)

    from jobs.submit.ray_jobs import JobsApi

    api = JobsApi.at(args.address)
    if args.cancel is not None:
        return _cancel(args, console, api, base)
    return _submit(args, console, api, base, argv)


def _refuse_contradictions(args: argparse.Namespace, argv: list[str]) -> None:
    if args.cancel is None and not argv:
        raise UsageError(
            "no command to run: camworker submit -- localize s3://bucket/in --output s3://bucket/out"
        )
    if args.cancel is not None and bool(args.cancel) == bool(argv):
        raise UsageError("--cancel takes either an ID or, after --, the command to stop")
    api, kube = ("address", "working_dir", "no_wait"), ("apply", "manifest", "image", "namespace")
    for name in api if args.kuberay else kube:
        if getattr(args, name):
            rule = "cannot be used with" if args.kuberay else "can only be used with"
            raise UsageError(f"--{name.replace('_', '-')} {rule} --kuberay")
    if args.working_dir is not None and not Path(args.working_dir, "jobs/cli.py").is_file():
        raise UsageError(
            f"{args.working_dir} is not a clone of camworker: it has no jobs/cli.py", parameter="working_dir"
        )


def _submission_id(argv: list[str], args: argparse.Namespace, console: Console) -> str:
    """Check that a cluster can run a command and return its id; exit as the command would if it is wrong."""
    from jobs.cli import make_parser  # jobs.cli imports this module

    command = make_parser().parse_args(argv)
    if command.command == "submit":
        raise UsageError("submit cannot submit itself")
    if getattr(command, "address", None):
        raise UsageError("leave out the command's --address: it joins the cluster on which it runs")
    if args.cancel is None:
        for note in check_paths(vars(command), args.working_dir):
            console.err(f"camworker submit: {note}")
    return submission_id(vars(command))


def _submit(args: argparse.Namespace, console: Console, api: "JobsApi", base: str, argv: list[str]) -> int:
    from jobs.ray_cluster import JOB_STOP_VARIABLE
    from jobs.submit.ray_jobs import STOP_SECONDS, JobOptions, exit_code

    signal.signal(signal.SIGTERM, _interrupt)
    runtime_env: dict[str, object] = {"env_vars": {JOB_STOP_VARIABLE: str(STOP_SECONDS)}}
    if args.working_dir is not None:
        runtime_env |= {"working_dir": args.working_dir, "excludes": [".git"]}
    name, adopted = api.submit(
        base,
        entrypoint(argv, from_clone=args.working_dir is not None),
        JobOptions(runtime_env, args.driver_cpus or None, dict(args.driver_resource) or None),
    )
    console.err(f"{name} {'is already running: following it' if adopted else 'is submitted'}")
    if args.no_wait:
        console.result(_content(name, adopted))
        return DONE
    try:
        job = api.follow(name, _write_to(sys.stderr if console.as_json else sys.stdout))
    except KeyboardInterrupt:
        console.err(
            f"{name} keeps running. Run the same command to follow it again, or stop it with: "
            f"camworker submit --cancel {name}"
        )
        return INCOMPLETE
    code = exit_code(job)
    reason = "" if job.driver_exit_code is not None else f": {job.message}"
    console.err(f"{name} {job.status.value}, exit code {code}{reason}")
    console.result(_content(name, adopted, job.status.value, code))
    return code


def _cancel(args: argparse.Namespace, console: Console, api: "JobsApi", base: str) -> int:
    from jobs.submit.ray_jobs import STOP_SECONDS

    statuses = api.statuses()
    name = args.cancel or api.unfinished(base, statuses)
    if args.cancel and name not in statuses:
        raise UsageError(f"there is no job {name}")
    if name is None or statuses[name].is_terminal():
        return _nothing_to_stop(console, name or base)
    job = api.stop(name, STOP_SECONDS + _STOP_MARGIN_SECONDS)
    console.err(f"{name} {job.status.value}")
    console.result(_content(name, True, job.status.value))
    return DONE if job.status.is_terminal() else INCOMPLETE


def _kuberay(args: argparse.Namespace, console: Console, base: str, argv: list[str]) -> int:
    from jobs.submit.kuberay import RayJobs, as_yaml, read_manifest

    content = read_manifest(args.manifest or str(_MANIFEST))
    manifest = rayjob(
        content,
        base,
        entrypoint(argv, from_clone=False),
        namespace=args.namespace,
        image=args.image,
        driver_cpus=args.driver_cpus,
        driver_resources=dict(args.driver_resource),
    )
    if args.cancel is None and not args.apply:
        console.out(as_yaml(manifest).rstrip())
        console.result(_content(base, False))
        return DONE
    namespace = manifest["metadata"].get("namespace")
    jobs, option = RayJobs(namespace), f" --namespace {namespace}" if namespace else ""
    if args.cancel is not None:
        name = args.cancel or jobs.unfinished(base, jobs.statuses())
        if name is None:
            return _nothing_to_stop(console, base)
        jobs.delete(name)
        console.err(f"rayjob/{name} is deleted; KubeRay stops its job first")
        console.result(_content(name, True))
        return DONE
    name, adopted = jobs.create(base, manifest)
    console.err(
        f"rayjob/{name} {'is already active' if adopted else 'is created'}. "
        f"Follow it with: kubectl logs{option} --follow job/{name}; "
        f"stop it with: camworker submit --kuberay{option} --cancel {name}"
    )
    console.result(_content(name, adopted))
    return DONE


def _nothing_to_stop(console: Console, name: str) -> int:
    console.err(f"{name} is not running: there is nothing to stop")
    console.result(_content(name, True))
    return DONE


def _content(
    name: str, adopted: bool, status: str | None = None, code: int | None = None
) -> dict[str, object]:
    """Return the JSON result; status and code are None if the job was not waited for."""
    return {"submission_id": name, "status": status, "exit_code": code, "adopted": adopted}


def _write_to(stream: TextIO) -> Callable[[str], None]:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    if not name or not amount:
        raise argparse.ArgumentTypeError("has to be NAME=N")
    return name, non_negative(amount)
