"""What a GPU is told, and in which order; the GPU itself is a stand-in that writes down what it hears."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from workers.lanes import CudaLane


@pytest.fixture
def heard(monkeypatch):
    """Every call to CUDA, in order, with the stream that was current."""
    calls: list[tuple] = []
    current = ["computing"]

    class Stream:
        def __init__(self, device=None, name="copying"):
            self.name = name

        def wait_event(self, event):
            calls.append(("wait", self.name, event.number))

    class Event:
        made = 0

        def __init__(self, blocking=False):
            self.blocking, self.number = blocking, Event.made
            Event.made += 1

        def record(self, stream):
            calls.append(("record", stream.name, self.number))

        def synchronize(self):
            calls.append(("synchronize", self.blocking, self.number))

    @contextmanager
    def stream(entered):
        before, current[0] = current[0], entered.name
        yield
        current[0] = before

    @contextmanager
    def device(entered):
        calls.append(("device", entered))
        yield

    def moved(tensor, where, non_blocking=False):
        calls.append(("copy", current[0], non_blocking))
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(name=current[0]))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(("empty",)))
    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: calls.append(("used", stream.name))
    )
    return calls


GPU = torch.device("cuda", 1)


def test_tensors_are_copied_beside_the_computing_stream_which_waits_for_them(heard):
    lane = CudaLane(GPU)
    tensors, copied = lane.bring((torch.zeros(2), torch.ones(3)))
    assert heard == [
        ("device", GPU), ("copy", "copying", True), ("copy", "copying", True), ("record", "copying", 0),
    ]  # fmt: skip
    heard.clear()
    lane.wait(copied, tensors)
    assert heard == [("wait", "computing", 0), ("used", "computing"), ("used", "computing")]


def test_finishing_waits_for_what_was_launched_without_spinning(heard):
    CudaLane(GPU).finish()
    assert heard == [("record", "computing", 0), ("synchronize", True, 0)]


def test_memory_is_freed_and_tensors_made_on_the_lanes_own_device(heard):
    lane = CudaLane(GPU)
    lane.free()
    with lane.current():
        pass
    assert heard == [("device", GPU), ("empty",), ("device", GPU)]
    assert lane.pinned
