"""Searches by picture over HTTP, queries encoded together and each on its own: searches a second and p99, 1 and 64 clients."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from bench.result import Row, median
from bench.scratch import scratch_folder
from models.artifact import save_artifact
from models.encoders import architecture_module
from models.encoders.images import ImagePreprocessing
from orchestrator.bootstrap import open_context
from orchestrator.client import Client
from orchestrator.context import Context
from orchestrator.service import background, embed, galleries, models
from orchestrator.settings import Settings, load_settings

ITEMS, EDGE, DIM = 200, 32, 64
OPTIONS: dict[str, object] = {}  # the network that the demo trains
CLIENTS = (1, 64)
TOGETHER, ALONE = "together", "alone"
ROW = 10


def _picture(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (EDGE, EDGE)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _build(context: Context, folder: Path, seed: int) -> None:
    """Gallery `pics` of random pictures, embedded by a network of random weights: as fast as a trained one."""
    rng = np.random.default_rng(seed)
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(ITEMS):
        (pictures / f"{number}.png").write_bytes(_picture(rng))
    preprocessing = ImagePreprocessing(size=EDGE)
    torch.manual_seed(seed)
    network = architecture_module("convnet").build(OPTIONS, DIM, preprocessing)
    save_artifact(
        folder / "net", network.state_dict(), kind="encoder", name="net", architecture="convnet", options=OPTIONS,
        modality="image", preprocessing=asdict(preprocessing), dim=DIM,
    )  # fmt: skip
    models.import_model(context, folder / "net", "net")
    galleries.create_gallery(context, "pics", str(pictures))
    vectors = rng.normal(size=(ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embed.import_embeddings(context, "pics", "net", vectors, lambda done, total: None)


@contextmanager
def _server(context: Context, encode_batch: int) -> Iterator[str]:
    environment = background.worker_environment(context.settings) | {
        "HOTREFRESH_ENCODE_BATCH": str(encode_batch)
    }
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port", "0", "-o", "json"],
            env=environment, stdout=subprocess.PIPE, stderr=nowhere,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with Client(url, retries=10) as client:
            client.search("pics", key="0.png")
        yield url
    finally:
        process.terminate()
        process.wait()


async def _client(url: str, requests: list[bytes], until: float, took: list[float]) -> None:
    """One client with one connection, its next search when the last is answered."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    number = 0
    while time.perf_counter() < until:
        started = time.perf_counter()
        writer.write(requests[number % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        took.append(time.perf_counter() - started)
        number += 1
    writer.close()


def _load(url: str, clients: int, seconds: float, bodies: list[bytes]) -> tuple[float, float]:
    """Searches a second, and p99 in milliseconds."""
    requests = [
        b"POST /search/pics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        for body in bodies
    ]
    took: list[float] = []

    async def all_clients() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(
            *(_client(url, requests[n:] + requests[:n], until, took) for n in range(clients))
        )

    started = time.perf_counter()
    asyncio.run(all_clients())
    return len(took) / (time.perf_counter() - started), 1e3 * float(np.quantile(took, 0.99))


def run(
    settings: Settings | None = None, *, repeats: int = 5, quick: bool = False, seed: int = 0
) -> list[Row]:
    """Medians of `repeats` turns of some seconds, both servers in turns."""
    seconds = 1.0 if quick else 4.0
    rng = np.random.default_rng(seed + 1)
    bodies = [
        json.dumps({"image": base64.b64encode(_picture(rng)).decode(), "k": 10}).encode() for _ in range(64)
    ]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with scratch_folder(settings or load_settings()) as folder, ExitStack() as stack:
        context = stack.enter_context(open_context(Settings(data_dir=folder / "data")))
        _build(context, folder, seed)
        urls = {
            how: stack.enter_context(_server(context, most)) for how, most in ((TOGETHER, 64), (ALONE, 1))
        }
        for _ in range(repeats):
            for clients in CLIENTS:
                for how, url in urls.items():
                    found.setdefault((how, clients), []).append(_load(url, clients, seconds, bodies))
    rows = []
    for clients in CLIENTS:
        (qps, p99), (qps_alone, p99_alone) = (
            tuple(median([turn[at] for turn in found[how, clients]]) for at in (0, 1))
            for how in (TOGETHER, ALONE)
        )
        what = f"{clients} client{'s' if clients > 1 else ''}, pictures of {EDGE} × {EDGE}, the small network"
        rows += [
            Row(ROW, f"searches encoded together, {what}", qps, "searches/s", f"alone {qps_alone:.1f}", qps / qps_alone),
            Row(ROW, f"their p99, {what}", p99, "ms", f"alone {p99_alone:.1f}", p99 / p99_alone),
        ]  # fmt: skip
    return rows
