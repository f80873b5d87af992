"""Ray's Jobs API: start one job per run of a command, follow it to its end, stop it."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import ClassVar, Final, Self
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from camworker.errors import CamworkerError, UsageError, first_line
from jobs.console import DONE, INCOMPLETE
from jobs.ray_cluster import JOBS_LOGGER, NOT_STARTED_ERRORS, http_status, require_listener
from jobs.submit.job_spec import next_run, runs_of

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"

# By default, Ray kills a job 3 s after it was asked to stop. The driver drains for up to 13 s, and Ray itself
# needs some time to shut down.
STOP_SECONDS: Final = 60
_SUBMIT_SECONDS: Final = 60.0
_RECONNECT_SECONDS: Final = 120.0
# A connection may lose its other end without an error: reconnect after this long without a line.
_SILENCE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 1.0
_ADVICE: Final = "run the same command again to follow the job or to resume its work"


class LostJobError(CamworkerError):
    """The cluster is out of reach or does not know the job; the job itself may still be running."""

    exit_code: ClassVar[int] = INCOMPLETE


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Options of JobSubmissionClient.submit_job; resources of the driver are None for Ray's default."""

    runtime_env: dict[str, object]
    entrypoint_num_cpus: float | None = None
    entrypoint_resources: dict[str, float] | None = None


class JobsApi:
    """The jobs of one cluster.

    Args:
        client: A connected client.
        address: The address of the cluster, for messages.
    """

    def __init__(self, client: JobSubmissionClient, address: str) -> None:
        self._client = client
        self._address = address

    @classmethod
    def at(cls, address: str | None) -> Self:
        """Connect to a cluster.

        Args:
            address: The URL of its dashboard. Default: RAY_API_SERVER_ADDRESS, or this machine.

        Raises:
            UsageError: If no Jobs API answers or it refuses the token.
        """
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        parts = urlsplit(address if "://" in address else f"http://{address}")
        try:
            default_port = {"http": 80, "https": 443}[parts.scheme]
            port = parts.port or default_port
        except (ValueError, KeyError):
            port = None
        if not port or not parts.hostname:
            raise UsageError(
                f"{address} is not the URL of a dashboard, such as http://HOST:8265", parameter="address"
            )
        require_listener(parts.hostname, port, address)
        os.environ["RAY_API_SERVER_ADDRESS"] = parts.geturl()  # Ray prefers the variable to the argument
        logging.getLogger(JOBS_LOGGER).setLevel(logging.WARNING)
        try:
            return cls(JobSubmissionClient(parts.geturl()), address)
        except AuthenticationError as error:
            raise UsageError(f"the cluster at {address} refuses: {first_line(error)}") from error
        except (RuntimeError, OSError, ValueError) as error:
            raise UsageError(f"no Jobs API answers at {address}: {first_line(error)}") from error

    def submit(self, base: str, entrypoint: str, options: JobOptions) -> tuple[str, bool]:
        """Start a run of a command, or adopt the run that is active.

        Args:
            base: The id of the command.
            entrypoint: Its shell command.
            options: Options of the job.

        Returns:
            The submission id and whether an active run was adopted.

        Raises:
            UsageError: If the cluster refuses the job, or starts nothing for a minute.
        """
        deadline = time.monotonic() + _SUBMIT_SECONDS
        while True:
            try:
                statuses = self.statuses()
                if (running := self.unfinished(base, statuses)) is not None:
                    return running, True
                name = next_run(base, statuses)
                self._client.submit_job(submission_id=name, entrypoint=entrypoint, **asdict(options))
                return name, False
            except (RuntimeError, OSError) as error:
                # Right after its start a head has no agent yet, and another submitter may have been faster.
                status = http_status(error)
                may_pass = isinstance(error, OSError) or (status is not None and status >= 500)
                if not may_pass or time.monotonic() > deadline:
                    raise UsageError(
                        f"the cluster at {self._address} starts no job: {_last_line(error)}"
                    ) from error
                time.sleep(_POLL_SECONDS)
            except ValueError as error:
                raise UsageError(f"the job cannot be sent: {first_line(error)}") from error

    def statuses(self) -> dict[str, JobStatus]:
        """Return the status of every job that the cluster remembers, by submission id."""
        return {job.submission_id: job.status for job in self._client.list_jobs() if job.submission_id}

    def unfinished(self, base: str, statuses: Mapping[str, JobStatus]) -> str | None:
        """Return the run of a command that waits or runs, or None."""
        active = [name for name in runs_of(base, statuses).values() if not statuses[name].is_terminal()]
        return active[-1] if active else None

    def follow(self, name: str, write: Callable[[str], None]) -> JobDetails:
        """Pass the logs of a job to write until it has ended, across lost connections.

        Returns:
            The details of the ended job.

        Raises:
            LostJobError: If the cluster does not answer for two minutes, or does not know the job.
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
                    if position > written:  # every connection starts at the beginning of the log
                        write(text[max(0, len(text) - (position - written)) :])
                        written = position

        return self._until_ended(name, lambda: asyncio.run(copy()), None)

    def stop(self, name: str, seconds: float) -> JobDetails:
        """Ask a job to stop and wait for its end, for at most this many seconds.

        Returns:
            The details of the job, which may still be running.

        Raises:
            LostJobError: If the cluster does not answer for two minutes, or does not know the job.
        """

        def ask() -> None:
            self._client.stop_job(name)  # asking again does no harm

        return self._until_ended(name, ask, time.monotonic() + seconds)

    def _until_ended(self, name: str, work: Callable[[], None], deadline: float | None) -> JobDetails:
        last_answer = time.monotonic()
        while True:
            try:
                work()
                job = self._client.get_job_info(name)
                if job.status.is_terminal() or (deadline and time.monotonic() > deadline):
                    return job
                last_answer = time.monotonic()
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                if http_status(error) == 404:
                    raise LostJobError(
                        f"the cluster at {self._address} does not know {name}; {_ADVICE}"
                    ) from error
                if time.monotonic() - last_answer > _RECONNECT_SECONDS:
                    raise LostJobError(
                        f"the cluster at {self._address} no longer answers ({first_line(error)}); {_ADVICE}"
                    ) from error
            time.sleep(_POLL_SECONDS)


def exit_code(job: JobDetails) -> int:
    """Return the exit code for a job that has ended.

    This is the exit code of the command, or 128 plus the number of the signal that killed it. If the command
    left none, it is the exit code that describes the status of the job.
    """
    code: int | None = job.driver_exit_code
    if code is not None:
        return code if code >= 0 else 128 - code
    if job.status == "SUCCEEDED":
        return DONE
    return UsageError.exit_code if job.error_type in NOT_STARTED_ERRORS else INCOMPLETE


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
