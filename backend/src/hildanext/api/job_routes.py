# The routes of jobs: start, list, look, follow, cancel, delete.
# Entry points: router.
# Functions are plain, so FastAPI runs them in its thread pool: they read files and may import plugins.
"""Job routes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi import Request as HttpRequest

from hildanext.api.job_plan import planned
from hildanext.api.replies import served
from hildanext.api.schemas import JobBody, JobKinds, JobList, JobLog, JobMetrics, JobReply
from hildanext.api.state import server_of
from hildanext.api.streams import EVENTS, event_stream, follow
from hildanext.command_files import job_kinds
from hildanext.config.root import config_schema, fields_at

router = APIRouter(prefix="/jobs", tags=["jobs"])
Tail = Annotated[int, Query(ge=1, le=10_000, description="lines from the end, a count")]
Stream = Annotated[bool, Query(description="server-sent events from the beginning until the job ends")]
Key = Annotated[str | None, Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]


@router.post(
    "", status_code=202, response_model=JobReply,
    responses={200: {"model": JobReply, "description": "The job this key made."},
               **served(400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 507)},
)  # fmt: skip
def create(body: JobBody, http: HttpRequest, response: Response, idempotency_key: Key = None) -> JobReply:
    """Queue a command. With an Idempotency-Key a repeated request finds the first one's job (200)."""
    files, new = server_of(http).jobs.create(body, idempotency_key)
    response.status_code = 202 if new else 200
    response.headers["location"] = f"/jobs/{files.path.name}"
    return files.reply()


@router.get("", response_model=JobList, responses=served(401, 422))
def every(http: HttpRequest, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
    """The newest runs, those started on the command line too."""
    return {"jobs": [files.reply() for files in server_of(http).jobs.every(limit)]}


@router.get("/kinds", response_model=JobKinds, responses=served(401))
def kinds() -> dict[str, Any]:
    """The commands that may run as a job, and the configuration values each reads; any other may be set as well."""
    found = job_kinds().values()
    return {
        "kinds": [
            {
                "command": file.name,
                "help": file.help,
                "plan": file.plan,
                "fields": [vars(field) for field in fields_at(file.job)],
            }
            for file in found
        ]
    }


@router.get("/schema", response_model=dict[str, Any], responses=served(401))
def schema() -> dict[str, Any]:
    """The JSON Schema of the whole configuration: the type and limits of every value a job may set."""
    return config_schema()


@router.post(
    "/plan", response_model=dict[str, Any], responses=served(400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 504)
)
def plan(body: JobBody, http: HttpRequest) -> dict[str, Any]:
    """What a training command would do, without doing it: stages, steps, tokens, estimated seconds and memory."""
    return planned(server_of(http).jobs, body)


@router.get("/{name}", response_model=JobReply, responses=served(401, 404, 422))
def one(name: str, http: HttpRequest) -> JobReply:
    """State, step, loss, estimated time, and the report once there is one."""
    return server_of(http).jobs.find(name).reply(full=True)


@router.get("/{name}/logs", response_model=JobLog, responses={**served(401, 404, 422), **EVENTS})
def logs(name: str, http: HttpRequest, tail: Tail = 200, stream: Stream = False) -> Any:
    """The last lines of the log and of the output, or events log and output."""
    files = server_of(http).jobs.find(name)
    if stream:
        return event_stream(follow(files, {"log.txt": "log", "output.txt": "output"}))
    return {"log": files.tail("log.txt", tail), "output": files.tail("output.txt", tail)}


@router.get("/{name}/metrics", response_model=JobMetrics, responses={**served(401, 404, 422), **EVENTS})
def job_metrics(name: str, http: HttpRequest, tail: Tail = 1000, stream: Stream = False) -> Any:
    """The last entries of metrics.jsonl, or events metric."""
    files = server_of(http).jobs.find(name)
    if stream:
        return event_stream(follow(files, {"metrics.jsonl": "metric"}))
    return {"metrics": files.metrics(tail)}


@router.post(
    "/{name}/cancel", status_code=202, response_model=JobReply, responses=served(401, 403, 404, 408, 409, 413, 422, 507)
)
def cancel(name: str, http: HttpRequest) -> JobReply:
    """Ask a job to end; one that runs saves a checkpoint first."""
    jobs = server_of(http).jobs
    files = jobs.find(name)
    jobs.cancel(files)
    return files.reply()


@router.delete("/{name}", status_code=204, responses=served(401, 403, 404, 408, 409, 413, 422, 500))
def delete(name: str, http: HttpRequest) -> None:
    """Remove an ended job with everything it wrote."""
    jobs = server_of(http).jobs
    jobs.delete(jobs.find(name))
