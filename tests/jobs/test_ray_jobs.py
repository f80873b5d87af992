"""The Jobs API of a cluster that fails, is overtaken and goes silent, played by a client of ours."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from camworker.errors import UsageError
from jobs.submit import ray_jobs as jobs_api
from jobs.submit.ray_jobs import JobOptions, JobsApi, LostJobError, exit_code

BASE = "camworker-localize-0123456789ab"
NO_AGENT = RuntimeError("Request failed with status code 500: No available agent to submit job.")
TAKEN = RuntimeError(f"Request failed with status code 500: Job with submission_id {BASE} already exists.")
UNKNOWN = RuntimeError(f"Request failed with status code 404: Job {BASE} does not exist.")
LOG = [f"line {n}\n" for n in range(4)]


def details(status, exit_code=None, error_type=None):
    return SimpleNamespace(status=JobStatus(status), driver_exit_code=exit_code, error_type=error_type)


@dataclass
class Client:
    """jobs: submission id -> status. fails: raised by the calls that come, one after the other.

    breaks: after so many pieces of the log a connection ends with an error; None: with the log.
    states: what is known of a job, each time one asks.
    """

    jobs: dict[str, str] = field(default_factory=dict)
    fails: list[Exception] = field(default_factory=list)
    breaks: list[int | None] = field(default_factory=list)
    states: list[object] = field(default_factory=list)
    entrypoints: dict[str, str] = field(default_factory=dict)

    def list_jobs(self):
        drivers = [SimpleNamespace(submission_id=None, status=JobStatus.RUNNING)]  # of no job
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
    """Sleeping takes no time, and yet time passes."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(jobs_api, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return now


def submit(client):
    return JobsApi(client, "http://there").submit(BASE, "camworker x", JobOptions({}))


def test_the_first_run_has_the_plain_id():
    client = Client({"another-job": "RUNNING"})
    assert submit(client) == (BASE, False)
    assert client.entrypoints == {BASE: "camworker x"}


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_one_that_goes_on_is_adopted(status):
    client = Client({BASE: "FAILED", f"{BASE}-2": status})
    assert submit(client) == (f"{BASE}-2", True)
    assert not client.entrypoints


def test_those_that_ended_do_not_block_the_next():
    assert submit(Client({BASE: "SUCCEEDED", f"{BASE}-2": "STOPPED"})) == (f"{BASE}-3", False)


def test_a_head_that_has_just_started_is_waited_for():
    assert submit(Client(fails=[NO_AGENT, NO_AGENT, ConnectionError("refused")])) == (BASE, False)


def test_who_was_faster_is_adopted():
    assert submit(Client(fails=[TAKEN])) == (BASE, True)


def test_not_for_ever(clock):
    with pytest.raises(UsageError, match=r"http://there starts no job: .*No available agent"):
        submit(Client(fails=[NO_AGENT] * 1000))
    assert 60 < clock[0] < 70


def test_what_the_cluster_refuses_is_not_tried_again():
    refused = RuntimeError(
        "Request failed with status code 400: Traceback\n  lines\nValueError: bad resources."
    )
    with pytest.raises(UsageError, match="starts no job: ValueError: bad resources"):
        submit(Client(fails=[refused]))


def follow(client):
    said = []
    job = JobsApi(client, "http://there").follow(BASE, said.append)
    return "".join(said), job


def test_the_log_is_whole_across_broken_connections():
    going, done = details("RUNNING"), details("SUCCEEDED", 0)
    said, job = follow(Client(breaks=[1, 0, 3, None, 2, None], states=[going, done]))
    assert said == "".join(LOG)
    assert job is done


def test_a_job_whose_cluster_was_started_anew_is_lost():
    with pytest.raises(LostJobError, match=f"does not know {BASE}"):
        follow(Client(breaks=[None], states=[UNKNOWN]))


def test_a_cluster_that_does_not_answer_is_given_up(clock):
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
        # Nothing had begun: to be mended, not to be resumed.
        (details("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE"), 2),
        # Its node was lost, for one.
        (details("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED"), 3),
    ],
)
def test_exit_codes(job, code):
    assert exit_code(job) == code
