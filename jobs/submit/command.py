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

# In the repository a link to infra/kuberay/rayjob.yaml; a wheel carries the file itself.
_MANIFEST: Final = Path(__file__).with_name("rayjob.yaml")
# Beyond what a job is given to stop: it has to be asked, and to be seen to have ended.
_STOPPING_SECONDS: Final = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "camworker submit [options] -- COMMAND ..."
    parser.add_argument(
        "inner",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND ...",
        help="as it would be typed after camworker",
    )
    parser.add_argument(
        "--cancel",
        nargs="?",
        const="",
        metavar="ID",
        help="stop this job, or the one that runs COMMAND; what it has begun is finished first",
    )
    parser.add_argument("--no-wait", action="store_true", help="return when the job is submitted")
    parser.add_argument(
        "--driver-cpus",
        type=non_negative,
        default=0.0,
        metavar="N",
        help="reserve cores for the driver, which is then on any node (default 0: on the head)",
    )
    parser.add_argument(
        "--driver-resource",
        type=_resource,
        action="append",
        default=[],
        metavar="NAME=N",
        help="put the driver where this resource of Ray is (again for more)",
    )
    api = parser.add_argument_group("to a running cluster")
    api.add_argument(
        "--address",
        metavar="URL",
        help="its dashboard (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )
    api.add_argument(
        "--working-dir",
        metavar="DIR",
        help="a clone of camworker to run, sent along (default: what the nodes have installed)",
    )
    kube = parser.add_argument_group("as a RayJob, with a cluster of its own")
    kube.add_argument("--kuberay", action="store_true", help="print the RayJob")
    kube.add_argument("--apply", action="store_true", help="create it by kubectl instead")
    kube.add_argument(
        "--manifest", metavar="FILE", help="the RayJob to start from (default: the one that comes along)"
    )
    kube.add_argument("--image", help="of its pods")
    kube.add_argument("--namespace", help="default: the manifest's")


def run(args: argparse.Namespace, console: Console) -> int:
    argv = args.inner[1:] if args.inner[:1] == ["--"] else args.inner
    _refuse_contradictions(args, argv)
    base = _name_of(argv, args, console) if argv else ""
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
            "say what to run: camworker submit -- localize s3://bucket/in --output s3://bucket/out"
        )
    if args.cancel is not None and bool(args.cancel) == bool(argv):
        raise UsageError("--cancel takes either an ID or, after --, the command that is to be stopped")
    api, kube = ("address", "working_dir", "no_wait"), ("apply", "manifest", "image", "namespace")
    for name in api if args.kuberay else kube:
        if getattr(args, name):
            where = "not with" if args.kuberay else "only with"
            raise UsageError(f"--{name.replace('_', '-')} goes {where} --kuberay")
    if args.working_dir is not None and not Path(args.working_dir, "jobs/cli.py").is_file():
        raise UsageError(f"--working-dir {args.working_dir} is no clone of camworker: it has no jobs/cli.py")


def _name_of(argv: list[str], args: argparse.Namespace, console: Console) -> str:
    """The id of a command that a cluster can run. Raises UsageError; exits as the command itself would."""
    from jobs.cli import make_parser  # which loads this module: it is the one command that holds others

    inner = make_parser().parse_args(argv)
    if inner.command == "submit":
        raise UsageError("the command to run is submit itself")
    if getattr(inner, "address", None):
        raise UsageError("leave out the command's --address: it joins the cluster that it runs on")
    if args.cancel is None:
        for note in check_paths(inner, args.working_dir):
            console.err(f"camworker submit: {note}")
    return submission_id(inner)


def _submit(args: argparse.Namespace, console: Console, api: "JobsApi", base: str, argv: list[str]) -> int:
    from jobs.ray_cluster import JOB_STOP_VARIABLE
    from jobs.submit.ray_jobs import STOP_SECONDS, JobOptions, exit_code

    signal.signal(signal.SIGTERM, _interrupt)
    runtime_env: dict[str, Any] = {"env_vars": {JOB_STOP_VARIABLE: str(STOP_SECONDS)}}
    if args.working_dir is not None:
        runtime_env |= {"working_dir": args.working_dir, "excludes": [".git"]}
    name, adopted = api.submit(
        base,
        entrypoint(argv, from_clone=args.working_dir is not None),
        JobOptions(runtime_env, args.driver_cpus or None, dict(args.driver_resource) or None),
    )
    console.err(f"{name} {'runs already: this follows it' if adopted else 'is submitted'}")
    if args.no_wait:
        console.result(_content(name, adopted))
        return DONE
    try:
        job = api.follow(name, _write_to(sys.stderr if console.as_json else sys.stdout))
    except KeyboardInterrupt:
        console.err(
            f"{name} goes on. The same command follows it again; camworker submit --cancel {name} stops it"
        )
        return INCOMPLETE
    code = exit_code(job)
    why = "" if job.driver_exit_code is not None else f": {job.message}"
    console.err(f"{name} {job.status.value}, exit code {code}{why}")
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
    job = api.stop(name, STOP_SECONDS + _STOPPING_SECONDS)
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
        name = args.cancel or jobs.unfinished(base, jobs.states())
        if name is None:
            return _nothing_to_stop(console, base)
        jobs.delete(name)
        console.err(f"rayjob/{name} is deleted: KubeRay stops its job first")
        console.result(_content(name, True))
        return DONE
    name, adopted = jobs.create(base, manifest)
    console.err(
        f"rayjob/{name} {'goes on already' if adopted else 'is created'}. Follow it: kubectl logs{option} "
        f"--follow job/{name}; stop it: camworker submit --kuberay{option} --cancel {name}"
    )
    console.result(_content(name, adopted))
    return DONE


def _nothing_to_stop(console: Console, name: str) -> int:
    console.err(f"{name} does not run: there is nothing to stop")
    console.result(_content(name, True))
    return DONE


def _content(name: str, adopted: bool, status: str | None = None, code: int | None = None) -> dict[str, Any]:
    """What --json tells. adopted: the job was there before; status and exit_code: null if not waited for."""
    return {"submission_id": name, "status": status, "exit_code": code, "adopted": adopted}


def _write_to(stream: TextIO) -> Callable[[str], None]:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    if not name or not amount:
        raise argparse.ArgumentTypeError("has to be NAME=N")
    return name, non_negative(amount)
