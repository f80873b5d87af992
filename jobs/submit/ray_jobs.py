"""Ray's Jobs API: one job for each run of a command, followed until it has ended, and stopped."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from camworker.errors import UsageError
from jobs.console import DONE, INCOMPLETE, USAGE
from jobs.ray_cluster import refuse_absent
from jobs.submit.job_spec import next_run, runs_of

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"

# Ray kills a job that it was told to stop after 3 s. A drain takes up to 13 s, and then Ray is left.
STOP_SECONDS: Final = 60
_SUBMIT_SECONDS: Final = 60.0
_RECONNECT_SECONDS: Final = 120.0
# A connection whose other end is gone without a word is noticed by opening a new one.
_SILENCE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 1.0

_NOTHING_STARTED: Final = frozenset(
    {
        *("RUNTIME_ENV_SETUP_FAILURE", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"),
        *("JOB_SUPERVISOR_ACTOR_START_FAILURE", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"),
        "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    }
)


class LostJobError(Exception):
    """The cluster is out of reach, or no longer knows the job: whether it goes on is not known."""


class JobsApi:
    """The jobs of one cluster."""

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address

    @classmethod
    def at(cls, address: str | None) -> Self:
        """The cluster whose dashboard is at address; default: RAY_API_SERVER_ADDRESS, or this machine.

        Raises UsageError where none answers, or not to us.
        """
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        parts = urlsplit(address if "://" in address else f"http://{address}")
        try:
            usual = {"http": 80, "https": 443}[parts.scheme]
            port = parts.port or usual
        except (ValueError, KeyError):
            port = None
        if not port or not parts.hostname:
            raise UsageError(f"--address {address}: jobs go to the dashboard, such as http://HOST:8265")
        refuse_absent(parts.hostname, port, address)
        os.environ["RAY_API_SERVER_ADDRESS"] = parts.geturl()  # Ray prefers its variables to arguments
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        try:
            return cls(JobSubmissionClient(parts.geturl()), address)
        except AuthenticationError as error:
            raise UsageError(f"the cluster at {address} refuses: {_first_line(error)}") from error
        except (RuntimeError, OSError, ValueError) as error:
            raise UsageError(f"no Jobs API answers at {address}: {_first_line(error)}") from error

    def submit(self, base: str, entrypoint: str, **options: Any) -> tuple[str, bool]:
        """Start a run of the command whose id is base, or adopt the one that goes on: id, whether adopted.

        Raises UsageError where the cluster refuses, or starts nothing for a minute.
        """
        deadline = time.monotonic() + _SUBMIT_SECONDS
        while True:
            try:
                states = self.states()
                if (running := self.unfinished(base, states)) is not None:
                    return running, True
                name = next_run(base, states)
                self._client.submit_job(submission_id=name, entrypoint=entrypoint, **options)
                return name, False
            except (RuntimeError, OSError) as error:
                # A head that has just started has no agent yet; another submitter was faster: look again.
                may_pass = isinstance(error, OSError) or "status code 5" in str(error)
                if not may_pass or time.monotonic() > deadline:
                    raise UsageError(
                        f"the cluster at {self._address} starts no job: {_last_line(error)}"
                    ) from error
                time.sleep(_POLL_SECONDS)
            except ValueError as error:
                raise UsageError(f"the job cannot be sent: {_first_line(error)}") from error

    def states(self) -> dict[str, Any]:
        """Submission id -> JobStatus, of all jobs that the cluster remembers."""
        return {job.submission_id: job.status for job in self._client.list_jobs() if job.submission_id}

    def unfinished(self, base: str, states: Mapping[str, Any]) -> str | None:
        """The run of a command that waits or runs; None where there is none."""
        going = [name for name in runs_of(base, states).values() if not states[name].is_terminal()]
        return going[-1] if going else None

    def follow(self, name: str, write: Callable[[str], None]) -> Any:
        """Copy a job's logs until it has ended, across broken connections. What is known of it then.

        Raises LostJobError.
        """
        written = 0

        async def copy() -> None:
            nonlocal written
            position = 0
            async with aclosing(self._client.tail_job_logs(name)) as stream:
                while True:
                    try:
                        text = await asyncio.wait_for(anext(stream), _SILENCE_SECONDS)
                    except (StopAsyncIteration, TimeoutError):
                        return
                    position += len(text)
                    if position > written:  # each connection begins at the beginning
                        write(text[max(0, len(text) - (position - written)) :])
                        written = position

        return self._until_ended(name, lambda: asyncio.run(copy()), None)

    def stop(self, name: str, seconds: float) -> Any:
        """Ask a job to stop, and wait so long until it has. What is known of it then. Raises LostJobError."""
        # To be asked again does a job no harm.
        return self._until_ended(name, lambda: self._client.stop_job(name), time.monotonic() + seconds)

    def _until_ended(self, name: str, work: Callable[[], None], deadline: float | None) -> Any:
        reached = time.monotonic()
        while True:
            try:
                work()
                job = self._client.get_job_info(name)
                if job.status.is_terminal() or (deadline and time.monotonic() > deadline):
                    return job
                reached = time.monotonic()
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                if "status code 404" in str(error):
                    raise LostJobError(f"the cluster at {self._address} does not know {name}") from error
                if time.monotonic() - reached > _RECONNECT_SECONDS:
                    raise LostJobError(
                        f"the cluster at {self._address} no longer answers: {_first_line(error)}"
                    ) from error
            time.sleep(_POLL_SECONDS)


def exit_code(job: Any) -> int:
    """Of a job that has ended: its command's own, else the one of ours that says what became of it.

    A command that a signal killed has 128 and the signal's number, as in a shell.
    """
    if job.driver_exit_code is not None:
        return job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code
    if job.status == "SUCCEEDED":
        return DONE
    return USAGE if job.error_type in _NOTHING_STARTED else INCOMPLETE


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
