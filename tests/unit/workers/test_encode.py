"""An encoder on its device gives the same vectors, in the same order, whatever memory there is."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.stubs import PacedStub
from models.artifact import Manifest
from models.encoders.device import TensorEncoder
from models.encoders.images import TorchImageEncoder
from models.errors import ItemError, UsageError
from workers import encode as module
from workers.encode import FittingSize, PlacedEncoder, Staged, encode_halving, place_encoder
from workers.lanes import CudaLane, HostLane, lane_of

CPU = torch.device("cpu")
DIM, SIZE = 6, 8


class Flat(nn.Module):
    """A network that can be made worse at bfloat16: `offset` is added and taken away again in the network's numbers."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.line = nn.Linear(SIZE * SIZE, DIM)
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, pixels):
        return (self.line(pixels.flatten(1)) + self.offset) - self.offset


def image_encoder(offset=0.0, together=4):
    torch.manual_seed(0)
    manifest = Manifest("encoder", "e", "convnet", {}, "image", {"size": SIZE, "mode": "L", "fill": 0}, DIM)
    encoder = TorchImageEncoder(manifest, Flat(offset))
    encoder.together = together
    return encoder


def pixels(n, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, 1, SIZE, SIZE), np.uint8))


class Arranged:
    """A tensor encoder that wants its items backwards: places must be put right again."""

    modality, dim, together, manifest = "text", 2, 3, None

    def preprocess(self, item):
        return item

    def encode(self, prepared):
        raise AssertionError("the placed network encodes")

    def arrange(self, prepared):
        return list(range(len(prepared)))[::-1]

    def collate(self, prepared, *, pinned=False):
        assert not pinned
        return torch.tensor(prepared, dtype=torch.float32), torch.ones(len(prepared))

    def forward_on(self, device, dtype):
        return lambda angles, ones: torch.stack([angles.cos() * ones, angles.sin()], dim=1)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 13])
@pytest.mark.parametrize("staged", [False, True])
def test_a_placed_encoder_gives_the_vectors_of_the_encoder(n, staged):
    encoder = image_encoder()
    placed = place_encoder(encoder, "cpu")
    prepared = placed.stage(pixels(n)) if staged else pixels(n)
    found = placed.encode(prepared)
    assert (found.shape, found.dtype) == ((n, DIM), np.float32)
    np.testing.assert_allclose(found, encoder.encode(pixels(n)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.ones(n), atol=1e-6)


@pytest.mark.parametrize("staged", [False, True])
def test_vectors_come_back_in_the_items_order_however_they_were_arranged(staged):
    placed = PlacedEncoder(Arranged(), CPU)
    angles = np.linspace(0, 3, 11).tolist()
    found = placed.encode(placed.stage(angles) if staged else angles)
    np.testing.assert_allclose(found, np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-6)


def test_an_encoder_without_a_network_of_ours_is_passed_through():
    stub = PacedStub(rate_per_s=10**9, dim=4)
    assert not isinstance(stub, TensorEncoder)
    placed = place_encoder(stub, "cpu", compiled=True)
    items = ["a", "b"]
    assert placed.stage(items) is items
    np.testing.assert_array_equal(placed.encode(items), stub.encode(items))
    assert placed.together is None


def test_a_worker_places_an_encoder_once_and_another_one_in_its_stead():
    one, two = image_encoder(), image_encoder()
    placed = module.placed_once(one, "cpu", None, False)
    assert module.placed_once(one, "cpu", None, False) is placed
    assert module.placed_once(two, "cpu", None, False) is not placed
    assert module.placed_once.cache_info().currsize == 1


def test_a_compiled_network_is_the_settled_one_compiled_once(monkeypatch):
    compiled = []
    monkeypatch.setattr(module.torch, "compile", lambda forward: compiled.append(forward) or forward)
    encoder = image_encoder()
    placed = place_encoder(encoder, "cpu", compiled=True)
    for _ in range(2):
        np.testing.assert_allclose(placed.encode(pixels(5)), encoder.encode(pixels(5)), atol=1e-6)
    assert len(compiled) == 1


class RecordingLane(HostLane):
    """A host that writes down what would overlap on a GPU."""

    def __init__(self):
        self.events = []
        self.count = itertools.count()

    def bring(self, host):
        number = next(self.count)
        self.events.append(("bring", number))
        return host, number

    def wait(self, copied, tensors):
        self.events.append(("wait", copied))

    def finish(self):
        self.events.append(("finish", None))


def test_a_staged_batch_is_copied_before_it_is_encoded_and_waited_for_once():
    lane = RecordingLane()
    placed = PlacedEncoder(image_encoder(together=2), CPU, lane=lane)
    first, second = placed.stage(pixels(4)), placed.stage(pixels(2))
    assert [name for name, _ in lane.events] == ["bring"] * 3
    placed.encode(first)
    placed.encode(second)
    assert lane.events[3:] == [("wait", 0), ("wait", 1), ("finish", None), ("wait", 2), ("finish", None)]


def test_what_is_not_staged_is_copied_piece_by_piece_without_waiting_in_between():
    lane = RecordingLane()
    PlacedEncoder(image_encoder(together=2), CPU, lane=lane).encode(pixels(4))
    assert lane.events == [("bring", 0), ("wait", 0), ("bring", 1), ("wait", 1), ("finish", None)]


def test_staging_in_another_thread_while_encoding_mixes_nothing_up():
    encoder = image_encoder()
    placed = place_encoder(encoder, "cpu")
    batches = [pixels(9, seed) for seed in range(20)]
    staged = [None] * len(batches)
    ready = [threading.Event() for _ in batches]

    def feed():
        for place, batch in enumerate(batches):
            staged[place] = placed.stage(batch)
            ready[place].set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    for place, batch in enumerate(batches):
        assert ready[place].wait(60)
        np.testing.assert_allclose(placed.encode(staged[place]), encoder.encode(batch), atol=1e-6)
    feeder.join()


def test_staging_that_finds_no_memory_leaves_the_items_on_the_host(monkeypatch):
    placed = place_encoder(image_encoder(), "cpu")
    monkeypatch.setattr(placed._lane, "bring", lambda host: (_ for _ in ()).throw(MemoryError()))
    items = pixels(3)
    assert placed.stage(items) is items


def test_staging_raises_what_is_not_about_memory():
    with pytest.raises(ValueError, match="same shape"):
        place_encoder(image_encoder(), "cpu").stage(
            [np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 9), np.uint8)]
        )


def test_a_slice_of_staged_items_is_the_items():
    items = pixels(5)
    staged = place_encoder(image_encoder(), "cpu").stage(items)
    assert isinstance(staged, Staged)
    assert len(staged) == 5
    assert staged[1] is items[1]
    assert [id(each) for each in staged[1:3]] == [id(each) for each in items[1:3]]


def test_staged_items_whose_tensors_were_dropped_are_encoded_from_the_host():
    placed = PlacedEncoder(Arranged(), CPU)
    staged = placed.stage([0.1, 0.2, 0.3, 0.4])
    expected = placed.encode(staged)
    staged.pieces.clear()
    np.testing.assert_array_equal(placed.encode(staged), expected)


def test_it_says_since_when_it_is_busy():
    placed = PlacedEncoder(Arranged(), CPU)
    seen = []
    real = placed._encoder.forward_on
    placed._encoder.forward_on = lambda *where: (
        lambda *t: (seen.append(placed.busy_since()), real(*where)(*t))[1]
    )
    assert placed.busy_since() is None
    placed.encode([0.1])
    assert seen[0] is not None
    assert placed.busy_since() is None
    assert placed.busy_s > 0


def test_it_is_not_busy_after_an_error():
    placed = PlacedEncoder(Arranged(), CPU)
    with pytest.raises(ValueError, match="str"):
        placed.encode(["no number"])
    assert placed.busy_since() is None


# -- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fewer_bits_are_used_where_the_vectors_stay_near(precision, capsys):
    encoder = image_encoder()
    placed = place_encoder(encoder, "cpu", precision)
    found = placed.encode(pixels(50))
    assert placed.precision == getattr(torch, precision)
    assert f'"precision": "{precision}"' in capsys.readouterr().err
    exact = encoder.encode(pixels(50))
    assert (found * exact).sum(axis=1).min() > 0.999
    assert np.abs(found - exact).max() > 1e-5, "the network computes in the precision asked for"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_network_that_fewer_bits_spoil_is_used_in_float32_and_the_log_says_so(capsys):
    encoder = image_encoder(offset=100.0)
    placed = place_encoder(encoder, "cpu", "bfloat16")
    found = placed.encode(pixels(50))
    assert placed.precision == torch.float32
    np.testing.assert_allclose(found, encoder.encode(pixels(50)), atol=1e-6)
    said = capsys.readouterr().err
    assert '"precision": "float32"' in said
    assert '"level": "warning"' in said


def test_the_precision_is_settled_once(capsys):
    placed = place_encoder(image_encoder(), "cpu", "bfloat16")
    placed.encode(pixels(4))
    placed.encode(pixels(4))
    assert capsys.readouterr().err.count("precision_settled") == 1


def test_vectors_that_are_not_finite_are_not_near():
    exact = torch.ones(2, 3)
    assert module.least_cosine(torch.tensor([[1.0, 1, 1], [float("nan"), 0, 0]]), exact) == -1


def test_the_lane_of_a_cpu_pins_nothing():
    lane = lane_of(CPU)
    assert isinstance(lane, HostLane)
    assert not lane.pinned


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: copies by a stream of their own")
def test_a_gpu_gives_the_vectors_of_the_cpu():
    encoder = image_encoder()
    placed = place_encoder(encoder, "cuda", "float32")
    assert isinstance(placed._lane, CudaLane)
    for seed in range(20):
        found = placed.encode(placed.stage(pixels(700, seed)))
        np.testing.assert_allclose(found, encoder.encode(pixels(700, seed)), atol=1e-3)


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="'int3' is no precision"):
        place_encoder(image_encoder(), "cpu", "int3")


# -- memory -------------------------------------------------------------------------------------------------------


class Tight:
    """Fits items whose weights sum to at most `room`; an item is its own weight and its vector's number."""

    dim, modality, manifest = 1, "text", None

    def __init__(self, room, error=MemoryError):
        self.room, self.error, self.sizes = room, error, []

    def preprocess(self, item):
        return item

    def encode(self, prepared):
        self.sizes.append(len(prepared))
        if sum(weight for _, weight in prepared) > self.room:
            raise self.error("CUDA out of memory")
        return np.array([[number] for number, _ in prepared], np.float32)


def numbered(weights):
    return list(enumerate(weights))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=70), st.integers(1, 30))
def test_whatever_fits_is_encoded_in_order_and_only_what_does_not_fit_alone_fails(weights, room):
    encoder = Tight(room)
    fits = [number for number, weight in enumerate(weights) if weight <= room]
    if not fits and len(weights) > 1:
        with pytest.raises(MemoryError):
            encode_halving(encoder, numbered(weights))
        return
    vectors, failed = encode_halving(encoder, numbered(weights))
    assert vectors[:, 0].tolist() == fits
    assert vectors.dtype == np.float32
    assert sorted(failed) == [number for number, weight in enumerate(weights) if weight > room]
    assert all(isinstance(error, ItemError) and error.reason == "out_of_memory" for error in failed.values())


@pytest.mark.parametrize("error", [MemoryError, torch.cuda.OutOfMemoryError, RuntimeError])
def test_sixty_four_items_into_room_for_twenty_are_halved_and_the_size_is_remembered(error):
    encoder, size = Tight(20, error), FittingSize()
    vectors, failed = encode_halving(encoder, numbered([1] * 64), size)
    assert vectors[:, 0].tolist() == list(range(64))
    assert not failed
    assert encoder.sizes == [64, 32, 16, 16, 16, 16]
    encoder.sizes.clear()
    encode_halving(encoder, numbered([1] * 64), size)
    assert encoder.sizes == [16] * 4


def test_after_many_passes_a_larger_size_is_tried_and_ever_more_rarely_where_it_fails():
    encoder, size = Tight(20), FittingSize()
    for _ in range(200):
        encode_halving(encoder, numbered([1] * 64), size)
    too_large = [place for place, tried in enumerate(encoder.sizes) if tried > 20]
    gaps = np.diff(too_large[2:])
    assert len(gaps) >= 2
    assert (gaps[1:] > 1.9 * gaps[:-1]).all()
    encoder.room = 1000
    for _ in range(2000):
        encode_halving(encoder, numbered([1] * 64), size)
    assert encoder.sizes[-1] == 64


def test_one_huge_item_does_not_make_the_others_slow():
    encoder, size = Tight(100), FittingSize()
    vectors, failed = encode_halving(encoder, numbered([1] * 20 + [1000] + [1] * 43), size)
    assert list(failed) == [20]
    assert len(vectors) == 63
    assert len(encoder.sizes) < 30
    encoder.sizes.clear()
    encode_halving(encoder, numbered([1] * 64), size)
    assert len(encoder.sizes) <= 64 // 8


def test_a_batch_of_one_item_too_large_is_that_items_failure():
    vectors, failed = encode_halving(Tight(5), numbered([6]))
    assert vectors.shape == (0, 1)
    assert failed[0].reason == "out_of_memory"


def test_memory_that_somebody_else_holds_is_no_items_fault():
    with pytest.raises(MemoryError):
        encode_halving(Tight(0), numbered([1] * 8))


def test_other_errors_are_raised_as_they_are():
    error = ValueError("poison")

    class Poisoned(Tight):
        def encode(self, prepared):
            raise error

    with pytest.raises(ValueError, match="poison") as caught:
        encode_halving(Poisoned(1), numbered([1, 2]))
    assert caught.value is error


def test_a_sticky_error_ends_the_process_before_anything_else_is_tried(monkeypatch):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr("workers.encode_errors.os._exit", end)
    encoder = Tight(0, lambda text: RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(Ended, match="70"):
        encode_halving(encoder, numbered([1] * 8))
    assert encoder.sizes == [8]


def test_a_placed_encoder_halves_below_what_it_takes_together_and_keeps_its_own_memory_of_it():
    refused = []

    class Small(Arranged):
        together = 8

        def forward_on(self, device, dtype):
            forward = super().forward_on(device, dtype)

            def limited(angles, ones):
                if len(angles) > 3:
                    refused.append(len(angles))
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory")
                return forward(angles, ones)

            return limited

    placed = PlacedEncoder(Small(), CPU)
    angles = np.linspace(0, 3, 21).tolist()
    staged = placed.stage(angles)
    vectors, failed = encode_halving(placed, staged)
    assert not failed
    assert not staged.pieces, "the tensors of the whole batch are not kept while its halves are encoded"
    np.testing.assert_allclose(vectors[:, 1], np.sin(angles), atol=1e-6)
    assert placed.fitting.limit == 2
    assert refused == [8, 4], "a size above what it takes together anyway is not tried"
