# The pictures of a run: the PNG files in its panels/ and plots/ folders, listed and sent.
# Entry points: router.
# A name is one of the list, so no path of a request is ever joined to a folder.
"""Routes of a run's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from hildanext.api.replies import ApiError, served
from hildanext.api.state import server_of

FOLDERS = ("panels", "plots")
router = APIRouter(prefix="/jobs", tags=["jobs"])


class Panels(BaseModel):
    """Pictures of a run."""

    panels: list[str] = Field(description="folder/name of each PNG file, the newest first")


def pictures_of(run: Path) -> list[str]:
    """panels/*.png and plots/*.png of a run directory, the newest first; links are left out."""
    found = [
        path
        for folder in FOLDERS
        if not (run / folder).is_symlink()
        for path in (run / folder).glob("*.png")
        if path.is_file() and not path.is_symlink()
    ]
    ordered = sorted(found, key=lambda path: (-path.stat().st_mtime_ns // 10**9, path.name))
    return [path.relative_to(run).as_posix() for path in ordered]


@router.get("/{name}/panels", response_model=Panels, responses=served(401, 404, 422))
def panels(name: str, http: HttpRequest) -> dict[str, Any]:
    """The pictures a run has drawn: panels every train.panels_every steps, plots at its end."""
    return {"panels": pictures_of(server_of(http).jobs.find(name).path)}


@router.get(
    "/{name}/panels/{folder}/{file}", response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}, "description": "The picture."}, **served(401, 404, 422)},
)  # fmt: skip
def panel(name: str, folder: str, file: str, http: HttpRequest) -> FileResponse:
    """One of them."""
    run, wanted = server_of(http).jobs.find(name).path, f"{folder}/{file}"
    if wanted not in pictures_of(run):
        raise ApiError(404, "jobs: the run has no picture of that name")
    return FileResponse(run / wanted, media_type="image/png")
