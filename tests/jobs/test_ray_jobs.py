"""The Jobs API of a cluster that fails or goes silent, with a client that stands in for Ray's."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from camworker.errors import UsageError
from jobs.submit import ray_jobs
from jobs.submit.ray_jobs import JobOptions, JobsApi, LostJobError, exit_code

BASE = "camworker-localize-0123456789ab"
NO_AGENT = RuntimeError("Request failed with status code 500: No available agent to submit job.")
TAKEN = RuntimeError(f"Request failed with status code 500: Job with submission_id {BASE} already exists.")
UNKNOWN = RuntimeError(f"Request failed with status code 404: Job {BASE} does not exist.")
LOG = [f"line {n}\n" for n in range(4)]


def details(status: str, exit_code: int | None = None, error_type: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(status=JobStatus(status), driver_exit_code=exit_code, error_type=error_type)


@dataclass
class Client:
    """A client whose calls have scripted results.

    Attributes:
        jobs: The status of every job by submission id.
        fails: Errors of the next calls of submit_job.
        breaks: For each connection, after how many pieces of the log it fails; None to reach the end.
        states: The results of get_job_info.
        entrypoints: The commands of submitted jobs.
    """

    jobs: dict[str, str] = field(default_factory=dict)
    fails: list[Exception] = field(default_factory=list)
    breaks: list[int | None] = field(default_factory=list)
    states: list[object] = field(default_factory=list)
    entrypoints: dict[str, str] = field(default_factory=dict)

    def list_jobs(self):
        drivers = [
            SimpleNamespace(submission_id=None, status=JobStatus.RUNNING)
        ]  # a driver that is not a job
        return [
            *drivers,
            *(SimpleNamespace(submission_id=n, status=JobStatus(s)) for n, s in self.jobs.items()),
        ]

    def submit_job(self, *, submission_id, entrypoint, **options):
        if self.fails:
            error = self.fails.pop(0)
            if error is TAKEN:
                self.jobs[submission_id] = "PENDING"
            raise error
        self.jobs[submission_id] = "PENDING"
        self.entrypoints[submission_id] = entrypoint
        return submission_id

    async def tail_job_logs(self, name):
        pieces = self.breaks.pop(0)
        for text in LOG[:pieces]:
            yield text
        if pieces is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, name):
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return state


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Replace the clock by one that only sleeping moves on."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(ray_jobs, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return now


def submit(client: Client) -> tuple[str, bool]:
    return JobsApi(client, "http://there").submit(BASE, "camworker x", JobOptions({}))


def test_the_first_run_has_the_plain_id() -> None:
    client = Client({"another-job": "RUNNING"})
    assert submit(client) == (BASE, False)
    assert client.entrypoints == {BASE: "camworker x"}


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_an_active_run_is_adopted(status: str) -> None:
    client = Client({BASE: "FAILED", f"{BASE}-2": status})
    assert submit(client) == (f"{BASE}-2", True)
    assert not client.entrypoints


def test_ended_runs_do_not_block_the_next() -> None:
    assert submit(Client({BASE: "SUCCEEDED", f"{BASE}-2": "STOPPED"})) == (f"{BASE}-3", False)


def test_submit_waits_for_a_head_that_has_just_started() -> None:
    assert submit(Client(fails=[NO_AGENT, NO_AGENT, ConnectionError("refused")])) == (BASE, False)


def test_the_job_of_a_faster_submitter_is_adopted() -> None:
    assert submit(Client(fails=[TAKEN])) == (BASE, True)


def test_submit_gives_up_after_a_minute(clock: list[float]) -> None:
    with pytest.raises(UsageError, match=r"http://there starts no job: .*No available agent"):
        submit(Client(fails=[NO_AGENT] * 1000))
    assert 60 < clock[0] < 70


def test_a_refusal_is_not_retried() -> None:
    refused = RuntimeError(
        "Request failed with status code 400: Traceback\n  lines\nValueError: bad resources."
    )
    with pytest.raises(UsageError, match="starts no job: ValueError: bad resources"):
        submit(Client(fails=[refused]))


def follow(client: Client) -> tuple[str, SimpleNamespace]:
    """Return the log and the details of the ended job."""
    pieces: list[str] = []
    job = JobsApi(client, "http://there").follow(BASE, pieces.append)
    return "".join(pieces), job


def test_the_log_is_complete_across_lost_connections() -> None:
    running, done = details("RUNNING"), details("SUCCEEDED", 0)
    log, job = follow(Client(breaks=[1, 0, 3, None, 2, None], states=[running, done]))
    assert log == "".join(LOG)
    assert job is done


def test_a_job_is_lost_when_its_cluster_was_restarted() -> None:
    with pytest.raises(LostJobError, match=f"does not know {BASE}"):
        follow(Client(breaks=[None], states=[UNKNOWN]))


def test_a_cluster_that_does_not_answer_is_given_up(clock: list[float]) -> None:
    with pytest.raises(LostJobError, match="no longer answers \\(gone\\)"):
        follow(Client(breaks=[None] * 1000, states=[ConnectionError("gone")] * 1000))
    assert 120 < clock[0] < 130


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (details("SUCCEEDED", 0), 0),
        (details("FAILED", 4), 4),
        (details("FAILED", 137), 137),
        (details("FAILED", -9), 137),
        (details("STOPPED"), 3),
        (details("SUCCEEDED"), 0),
        # Nothing was started: the request has to change.
        (details("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE"), 2),
        # For example, the node of the driver was lost.
        (details("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED"), 3),
    ],
)
def test_exit_codes(job: SimpleNamespace, code: int) -> None:
    assert exit_code(job) == code
