"""Training the demo's models: every seed and method in processes of their own, one core each."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

METHODS = ("independent", "bct", "ract")
# Part -> what it needs, the longest chain first.
NEEDS: dict[str, tuple[str, ...]] = {
    "old": (),
    "ract": ("old",),
    "adapter": ("old", "ract"),
    "independent": ("old",),
    "bct": ("old",),
}


@dataclass(frozen=True)
class Job:
    """One artifact of one seed, and the embeddings that the report's curves need of it."""

    seed: int
    part: str
    folder: Path
    fast: bool

    @property
    def artifact(self) -> Path:
        """Where the artifact lies."""
        return self.folder / f"seed-{self.seed}" / self.part


def train_everything(
    folder: Path,
    seeds: tuple[int, ...],
    *,
    fast: bool,
    processes: int,
    finished: Callable[[Job, float, int, int], None],
) -> None:
    """Train old, independent, BCT, RACT and the adapter of every seed; `finished(job, seconds, done, total)` after each.

    What a job needs is trained before it; jobs that need nothing of each other run side by side.
    """
    todo = [Job(seed, part, folder, fast) for seed in seeds for part in NEEDS]
    total, done = len(todo), set[tuple[int, str]]()
    running: dict[Future[float], Job] = {}
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            while todo or running:
                for job in [j for j in todo if all((j.seed, need) in done for need in NEEDS[j.part])]:
                    if len(running) >= processes:
                        break
                    todo.remove(job)
                    running[pool.submit(train_one, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    done.add((job.seed, job.part))
                    finished(job, future.result(), len(done), total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
            raise


def train_one(job: Job) -> float:
    """Train one artifact, embed the demo's gallery and queries with it; returns seconds."""
    import torch

    from models import recipes

    torch.set_num_threads(1)
    started = time.monotonic()
    recipe = recipes.FAST if job.fast else recipes.FULL
    beside = {part: job.artifact.parent / part for part in NEEDS}
    if job.part == "old":
        recipes.train_old(job.artifact, job.seed, recipe=recipe)
    elif job.part == "adapter":
        recipes.fit_adapter(job.artifact, beside["old"], beside["ract"], job.seed, recipe=recipe)
    else:
        recipes.train_new(job.part, job.artifact, beside["old"], job.seed, recipe=recipe)
    if job.part == "adapter":
        from models.adapters import load_adapter

        lifted, _ = load_adapter(job.artifact).transform(load_vectors(beside["old"], "gallery"))
        np.save(job.artifact / "gallery.npy", lifted)
    else:
        _embed(job.artifact)
    return time.monotonic() - started


def _embed(artifact: Path) -> None:
    from PIL import Image

    from models.datasets import glyphs
    from models.encoders import load_encoder

    encoder = load_encoder(artifact)
    for split in ("gallery", "queries"):
        pixels, _ = glyphs.pictures(split)
        np.save(
            artifact / f"{split}.npy",
            encoder.encode([encoder.preprocess(Image.fromarray(one)) for one in pixels]),
        )


def load_vectors(artifact: Path, split: str) -> npt.NDArray[np.float32]:
    """The embeddings that `train_one` left beside an artifact: (n, dim) float32."""
    vectors: npt.NDArray[np.float32] = np.load(artifact / f"{split}.npy", allow_pickle=False)
    return vectors
