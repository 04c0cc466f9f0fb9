"""What the benchmarks stand on: a ledger database of their own, a folder on the same disk, timing in turns."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.ledger.rows import ModelRow
from orchestrator.settings import load_settings


@contextmanager
def scratch_context() -> Iterator[Context]:
    """A context on a new, migrated database and a new folder, on the configured (or embedded) server; both are removed."""
    settings = load_settings()
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=_made(settings.data_dir.absolute())))
    name = f"hotrefresh_bench_{os.getpid()}"
    try:
        with open_context(settings) as outer:
            url = outer.engine.url.render_as_string(hide_password=False).replace(
                "postgresql+psycopg://", "postgresql://"
            )
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
                try:
                    own = {
                        "database_url": url.rsplit("/", 1)[0] + f"/{name}",
                        "broker_url": outer.broker.url,
                        "data_dir": folder,
                    }
                    with open_context(settings.model_copy(update=own)) as context:
                        yield context
                finally:
                    connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def in_turns(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, run one after the other in every repeat, so that a slow moment hits all."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - started)
    return taken


def medians(taken: dict[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in taken.items()}


def row(
    number: int,
    name: str,
    value: float,
    unit: str,
    against: str,
    ratio: float | None,
    target: str,
    holds: bool,
) -> dict[str, Any]:
    """One line of the table, in PERFORMANCE's format."""
    return {
        "row": number,
        "name": name,
        "value": value,
        "unit": unit,
        "against": against,
        "ratio": ratio,
        "target": target,
        "holds": holds,
    }


def register_network(context: Context, name: str, seed: int, dim: int = 64) -> ModelRow:
    """A random small network as a registered model: what it finds does not matter here, only what it costs."""
    import torch

    from models.artifact import save_artifact
    from models.encoders import architecture_module
    from models.encoders.images import ImagePreprocessing
    from orchestrator.service import models

    preprocessing = ImagePreprocessing()
    torch.manual_seed(seed)
    options = {"widths": [16, 32, 64]}
    network = architecture_module("convnet").build(options, dim, preprocessing)
    folder = context.settings.data_dir / f"artifact-{name}"
    save_artifact(
        folder,
        network.state_dict(),
        kind="encoder",
        name=name,
        architecture="convnet",
        options=options,
        modality="image",
        preprocessing=asdict(preprocessing),
        dim=dim,
    )
    return models.import_model(context, folder, name)


def host(seed: int) -> dict[str, Any]:
    """The machine and the versions that the figures were taken with."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if cpuinfo.exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "load_average": os.getloadavg()[0],
        "seed": seed,
        "versions": {
            name: version(name) for name in ("torch", "numpy", "faiss-cpu", "psycopg", "sqlalchemy", "celery")
        },
    }
