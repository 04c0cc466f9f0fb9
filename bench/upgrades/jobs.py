"""Which jobs there are, what each needs, and how it is done once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from bench.upgrades import chain_jobs, picture_jobs, text_jobs
from bench.upgrades.data import PICTURES, pictures
from bench.upgrades.job import Job, done_once
from models.datasets.splits import SPLITS
from models.errors import UsageError

_ROOMS: dict[str, dict[str, ModuleType]] = {
    "glyphs": {**dict.fromkeys(SPLITS, picture_jobs), chain_jobs.SPLIT: chain_jobs},
    "emoji": dict.fromkeys(("extended-class", "open-class"), picture_jobs),
    "verses": dict.fromkeys(text_jobs.UPGRADES, text_jobs),
}
"""Data -> split -> who knows its jobs."""


def jobs_of(root: Path, only: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """The jobs behind some parts, each DATA, DATA/SPLIT or DATA/SPLIT/ARM; none named: all.

    Raises UsageError for a part that does not exist.
    """
    jobs: dict[Job, None] = {}
    for part in only or tuple(_ROOMS):
        data, _, rest = part.partition("/")
        split, _, arm = rest.partition("/")
        if data not in _ROOMS:
            raise UsageError(f"there is no data {data!r} to measure on: choose one of {', '.join(_ROOMS)}")
        if split and split not in _ROOMS[data]:
            raise UsageError(f"{data} have no split {split!r}: choose one of {', '.join(_ROOMS[data])}")
        for each in [split] if split else _ROOMS[data]:
            room = _ROOMS[data][each]
            there: list[str] = room.arms_of(data, each)
            if arm and arm not in there:
                raise UsageError(f"{data}/{each} has no arm {arm!r}: choose one of {', '.join(there)}")
            # The tax and the update gain are measured against the model without any compatibility term.
            chosen = list(dict.fromkeys(["independent", arm])) if arm else there
            jobs |= dict.fromkeys(room.jobs_of(root, data, each, seeds, chosen))
    return list(jobs)


def needs(job: Job) -> list[Job]:
    """The jobs whose results a job reads."""
    found: list[Job] = _room(job).needs(job)
    return found


def work(job: Job) -> float:
    """Do a job, unless it is done; returns the seconds that it took."""
    return done_once(job, _room(job).do)


def check_data(jobs: Sequence[Job]) -> None:
    """Read what the jobs read: a missing package shows before an hour of training. Raises UsageError."""
    for data in dict.fromkeys(job.data for job in jobs):
        if data in PICTURES:
            pictures(data)
        else:
            text_jobs.check()


def _room(job: Job) -> ModuleType:
    """Who knows a job; what several splits share belongs to the data's first."""
    rooms = _ROOMS[job.data]
    return rooms.get(job.split, next(iter(rooms.values())))
