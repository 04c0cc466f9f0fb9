"""What tests of training do in processes of their own, `python -m tests.unit.models.training_world WHAT FOLDER …`,
and compatible-training methods that only tests know: they keep things between steps, well and badly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from models.compat import METHODS
from models.compat.base import CompatBatch, CompatMethod, OldModel
from models.errors import UsageError
from models.parallel import Processes
from models.training import Checkpoints, Training, train_encoder
from tests.unit.models.test_training import OPTIONS, bars

ROOT = Path(__file__).parents[3]
VIT = dataclasses.replace(
    OPTIONS,
    architecture="vit",
    network={"patch": 4, "width": 32, "depth": 1, "heads": 2, "norm": "dtn"},
    epochs=3,
)
"""With layer norms and dynamic ones, whose gates have options of their own in the optimiser."""


class Probe(CompatMethod):
    """A term that depends on a parameter, on all embeddings at the beginning of a pass, and on random numbers."""

    name = "probe"
    needs = frozenset({"vectors"})

    def prepare(self, old: OldModel, new_dim: int) -> None:
        self.map = nn.Linear(old.vectors.shape[1], new_dim)
        self.register_buffer("at_pass", None)

    def begin_pass(self, progress, embed):
        self.at_pass = embed()

    def term(self, batch: CompatBatch):
        assert batch.new.dtype == batch.new_head.dtype == torch.float32
        lifted = self.map(batch.old + 0.01 * torch.randn_like(batch.old))
        drift = (batch.new - self.at_pass[batch.rows]).square().sum(1).mean()
        return (batch.new - lifted).square().sum(1).mean() + 0.1 * drift


class Forgetful(CompatMethod):
    """It counts its steps where no checkpoint looks."""

    name = "forgetful"

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def term(self, batch: CompatBatch):
        self.steps += 1
        return batch.new.sum() * 0


TEST_METHODS = {
    "probe": "tests.unit.models.training_world:Probe",
    "forgetful": "tests.unit.models.training_world:Forgetful",
}


def run_alone(what: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`what` in one process."""
    return subprocess.run(_command(what, *arguments), **_kept(), timeout=200)


def run_together(what: str, *arguments: object, size: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """`what` in processes that find the environment that torchrun gives them; their results by rank."""
    port = _free_port()
    started = [
        subprocess.Popen(_command(what, *arguments), **_kept(**torchrun_environment(rank, size, port)))
        for rank in range(size)
    ]
    said = [process.communicate(timeout=200) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, said, strict=True)
    ]


def _free_port() -> int:
    """Below the ports that the system hands out by itself: any process may be given one of those in between."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port between 20000 and 32000")


def torchrun_environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_WORLD_SIZE": "1",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip


def _command(what: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.unit.models.training_world", what, *map(str, arguments)]


def _kept(**environment: str) -> dict[str, object]:
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return {
        "env": found, "cwd": ROOT, "text": True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if "RANK" in environment else {"capture_output": True}),
    }  # fmt: skip


# -- in the process ----------------------------------------------------------------------------------------------------


def train(folder: Path, old: Path, method: str, **more) -> list[float]:
    """A small training without batch norms; the losses of its steps."""
    losses: list[float] = []
    whole_step = Training.step

    def step(self):
        losses.append(float(whole_step(self)))
        return losses[-1]

    Training.step = step
    try:
        train_encoder(bars(), folder, name="m", method=method, old=old, options=VIT, seed=1, **more)
    finally:
        Training.step = whole_step
    return losses


def together(folder: Path, old: Path) -> None:
    """All that a pair of processes is asked about; each writes what it found to FOLDER/RANK.json."""
    rank, found = Processes().rank, {}
    reported: list[int] = []
    for method in ("independent", "bct", "ract", "probe"):
        found[method] = train(
            folder / method, old, method, progress=lambda done, total: reported.append(done)
        )
    found["reported"] = len(reported)
    found["resumed"] = _stopped_and_resumed(folder, old)
    found["text"] = [Processes().share_text(text if rank == 0 else None) for text in ("", "größer/ß")]
    found["gradient"] = _gathered_gradient()
    found["weights"] = _averaged_gradients()
    found["rows"] = Processes().compute_rows(5, lambda rows: torch.stack([rows, rows**2], 1).float()).tolist()
    found["errors"] = [
        _error(lambda: train_encoder(bars(), folder / "x", name="x", options=OPTIONS)),
        _error(
            lambda: train_encoder(
                bars(), folder / "x", name="x", options=dataclasses.replace(VIT, batch_size=33)
            )
        ),
        _error(lambda: train_encoder(bars(seed=rank), folder / "x", name="x", options=VIT)),
    ]
    (folder / f"{rank}.json").write_text(json.dumps(found))


def _gathered_gradient() -> list[list[float]]:
    """Of sum_ij i * (x_i . x_j)^2 over 4 gathered rows, in this process's two rows, before averaging."""
    processes = Processes()
    own = torch.arange(12.0).view(4, 3)[processes.share(4)].div(10).requires_grad_()
    every = processes.gather(own)
    weights = torch.arange(4.0)[:, None]
    (weights * (every @ every.T).square()).sum().backward()
    return own.grad.tolist()


def _stopped_and_resumed(folder: Path, old: Path) -> list[float]:
    """The losses of the steps after the checkpoint, of a training that ended in its sixth step on every process."""
    kept = Checkpoints(folder / "kept", every_steps=4)
    whole_step = Training.step

    def step(self):
        if self.done == 5:
            raise InterruptedError
        return whole_step(self)

    Training.step = step
    with contextlib.suppress(InterruptedError):
        train(folder / "never", old, "probe", checkpoints=kept)
    Training.step = whole_step
    return train(folder / "resumed", old, "probe", checkpoints=dataclasses.replace(kept, resume=True))


def _averaged_gradients() -> list[float]:
    """Of w and v in sum_i (w x_i - v)^2 over gathered x = 1, 2, 3, 4: w in the wrapped network, v outside of it."""
    processes = Processes()
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.5)
    outside = nn.Parameter(torch.tensor([2.0]))
    wrapped = processes.wrap(network)
    every = processes.gather(wrapped(torch.arange(1.0, 5.0)[processes.share(4), None]))
    processes.fabric.backward((every - outside).square().sum())
    processes.average_gradients(iter([outside]))
    return [float(network.weight.grad), float(outside.grad)]


def _error(action) -> str | None:
    try:
        action()
    except UsageError as error:
        return str(error)
    return None


def killed(folder: Path, old: Path, method: str, kind: str, where: str) -> None:
    """A training that SIGKILL ends: after step 5, or between the two files of the checkpoint after step 4."""
    options = dataclasses.replace(OPTIONS, epochs=3) if kind == "convnet" else VIT
    if where == "in-writing":
        plain = Path.replace

        def replace(self, target):
            if Path(target).name == "checkpoint.json" and (folder / "tensors-000000004.safetensors").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, target)

        Path.replace = replace

    def progress(done: int, total: int) -> None:
        if done == 5 and where == "in-step":
            os.kill(os.getpid(), signal.SIGKILL)

    train_encoder(
        bars(), folder / "never", name="m", method=method, old=old, options=options, seed=1, progress=progress,
        checkpoints=Checkpoints(folder, every_steps=2),
    )  # fmt: skip


if __name__ == "__main__":
    METHODS.update(TEST_METHODS)
    what, *arguments = sys.argv[1:]
    paths = [Path(argument) for argument in arguments[:2]]
    {"together": together, "killed": killed}[what](*paths, *arguments[2:])
