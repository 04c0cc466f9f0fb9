"""An encoder on its device: items are stacked, copied and encoded so that the device waits for none of it.

    stage    (the feeder's thread) stacks prepared items into pinned memory and copies them on a stream of their own
    encode   (the encoder's thread) runs the network on what is there, and waits once, for the last vector

While a batch is encoded the next one is staged: two are in flight. On a CPU the same code runs; nothing is pinned and a
copy is no copy. One worker has one device, and never after a fork (`choose_device`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.artifact import Manifest
from models.encoders import Encoder
from models.encoders.device import (
    AUTO,
    LEAST_COSINE,
    Forward,
    TensorEncoder,
    choose_device,
    choose_precision,
    least_cosine,
)
from models.errors import ItemError
from workers.encode_errors import end_if_sticky, out_of_memory
from workers.lanes import Lane, lane_of
from workers.log import log

F32 = npt.NDArray[np.float32]

GPU_TOGETHER = 512
"""Items of one forward pass on a GPU, at least: smaller passes leave it idle between kernels."""
SAMPLE = 64
"""Items by which a network in fewer bits is compared with float32, once a process."""
GROW_AFTER = 64
"""Passes that must succeed at a size before twice the size is tried again; doubled whenever that was too early."""


def place_encoder(
    encoder: Encoder, device: str = AUTO, precision: str | None = None, *, compiled: bool = False
) -> PlacedEncoder:
    """The encoder on a device; one that is no `TensorEncoder` (a user's own) chooses its device itself.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16" or "float16"; None: float32 on a CPU, bfloat16 on a GPU. Fewer bits are used
            only where the vectors of the first items stay near enough to float32 (`LEAST_COSINE`).
        compiled: whether the network goes through torch.compile first, which takes minutes once and needs a compiler.

    Raises UsageError: as `choose_device` and `choose_precision`.
    """
    where = choose_device(device)
    return PlacedEncoder(encoder, where, choose_precision(precision, where), compiled=compiled)


@lru_cache(maxsize=1)
def placed_once(
    encoder: Encoder, device: str = AUTO, precision: str | None = None, compiled: bool = False
) -> PlacedEncoder:
    """`place_encoder`, kept: a worker that drains one rollout in many calls copies the network to its device once.

    One is kept, as a worker drains one rollout at a time: the next model's takes its place in the device's memory.
    """
    return place_encoder(encoder, device, precision, compiled=compiled)


@dataclass(frozen=True)
class Piece:
    """Items of one forward pass. `places`: where their vectors belong; `tensors`: on the device once `lane` says so."""

    places: Sequence[int]
    tensors: tuple[Tensor, ...]
    copied: Any


class Staged(Sequence[Any]):
    """Prepared items whose tensors are on their way to the device. A slice is a plain sequence of the items.

    `pieces` is emptied where device memory is short: the items can still be encoded, from the host.
    """

    def __init__(self, items: Sequence[Any], pieces: list[Piece]) -> None:
        self._items = items
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        return self._items[at]


class PlacedEncoder:
    """An `Encoder` whose network runs on one device. `stage` and `encode` may be called from two threads.

    Attributes:
        device: where the network is.
        precision: the numbers it computes in; settled by the first items.
        busy_s: seconds spent in `encode` so far.
        fitting: how many items fit at once, remembered by `encode_halving`.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        *,
        compiled: bool = False,
        lane: Lane | None = None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.busy_s = 0.0
        self.fitting = FittingSize()
        self._encoder = encoder
        self._tensors = encoder if isinstance(encoder, TensorEncoder) else None
        self._compiled = compiled
        self._lane = lane or lane_of(device)
        self._forward: Forward | None = None
        self._busy_since: float | None = None

    @property
    def manifest(self) -> Manifest:
        """The encoder's."""
        return self._encoder.manifest

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._encoder.dim

    @property
    def modality(self) -> str:
        """ "image", "text" or "video"."""
        return self._encoder.modality

    @property
    def together(self) -> int | None:
        """Items of one forward pass at most; None where the encoder keeps that to itself."""
        if self._tensors is None:
            return None
        least = GPU_TOGETHER if self.device.type == "cuda" else 1
        return max(self._tensors.together, least)

    def preprocess(self, item: Any) -> Any:
        """One item, ready for `encode`: on a CPU thread."""
        return self._encoder.preprocess(item)

    def busy_since(self) -> float | None:
        """`time.monotonic()` when the present call of `encode` began; None while there is none."""
        return self._busy_since

    def stage(self, prepared: Sequence[Any]) -> Sequence[Any]:
        """Start copying prepared items to the device and return at once; give the result to `encode` as it is.

        Where they do not fit beside the batch that is being encoded, they stay on the host and `encode` copies them.
        """
        if self._tensors is None or not len(prepared):
            return prepared
        try:
            return Staged(prepared, list(self._pieces(self._tensors, prepared)))
        except Exception as error:
            end_if_sticky(error)
            if not out_of_memory(error):
                raise
        self._lane.free()
        return prepared

    def encode(self, prepared: Sequence[Any]) -> F32:
        """(n, dim) float32, L2-normalised in float32, in the order given; n items or what `stage` made of them.

        Raises what the network raises; memory that is short is `encode_halving`'s business.
        """
        with self._busy(), torch.inference_mode(), self._lane.current():
            if self._tensors is None:
                return self._encoder.encode(prepared)
            if not len(prepared):
                return np.empty((0, self.dim), np.float32)
            forward = self._settled(self._tensors, prepared)
            staged = prepared.pieces if isinstance(prepared, Staged) else None
            return self._run(forward, staged or self._pieces(self._tensors, prepared), len(prepared))

    def free(self) -> None:
        """Give unused device memory back, after it was short."""
        self._lane.free()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        started = time.perf_counter()
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None
            self.busy_s += time.perf_counter() - started

    def _run(self, forward: Forward, pieces: Iterable[Piece], n: int) -> F32:
        """Launch every piece, then wait once: the host stacks and copies piece i + 1 while the device computes i."""
        host = torch.empty(n, self.dim, pin_memory=self._lane.pinned)
        places: list[int] = []
        for piece in pieces:
            self._lane.wait(piece.copied, piece.tensors)
            at = len(places)
            places.extend(piece.places)
            host[at : len(places)].copy_(forward(*piece.tensors), non_blocking=self._lane.pinned)
        self._lane.finish()
        vectors = np.empty((n, self.dim), np.float32)  # the pinned memory goes back to be used again
        vectors[places] = host.numpy()
        return vectors

    def _pieces(self, encoder: TensorEncoder, prepared: Sequence[Any]) -> Iterator[Piece]:
        order = encoder.arrange(prepared)
        together = self.together or len(order)
        for at in range(0, len(order), together):
            places = order[at : at + together]
            host = encoder.collate([prepared[place] for place in places], pinned=self._lane.pinned)
            yield Piece(places, *self._lane.bring(host))

    # -- precision ------------------------------------------------------------------------------------------------

    def _settled(self, encoder: TensorEncoder, prepared: Sequence[Any]) -> Forward:
        """The network in the precision asked for, or in float32 where the first items say that it is too coarse."""
        if self._forward is not None:
            return self._forward
        if self.precision != torch.float32:
            sample = prepared[: min(SAMPLE, self.together or SAMPLE)]
            cosine = self._cosine(encoder, sample)
            enough = cosine >= LEAST_COSINE
            log(
                "encoder.precision_settled",
                level="info" if enough else "warning",
                device=str(self.device),
                asked=_name(self.precision),
                precision=_name(self.precision if enough else torch.float32),
                least_cosine=round(cosine, 6),
                wanted_cosine=LEAST_COSINE,
                sample=len(sample),
            )
            if not enough:
                self.precision = torch.float32
        forward = encoder.forward_on(self.device, self.precision)
        self._forward = torch.compile(forward) if self._compiled else forward
        return self._forward

    def _cosine(self, encoder: TensorEncoder, sample: Sequence[Any]) -> float:
        found = []
        for dtype in (torch.float32, self.precision):
            forward = encoder.forward_on(self.device, dtype)
            found.append(torch.from_numpy(self._run(forward, self._pieces(encoder, sample), len(sample))))
        return least_cosine(found[1], found[0])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- memory -------------------------------------------------------------------------------------------------------


@dataclass
class FittingSize:
    """How many items are encoded at once: halved when memory is short, doubled again after many passes that fit.

    Attributes:
        limit: None as long as memory was never short.
        proven: the largest size that fitted since then.
    """

    limit: int | None = None
    proven: int = 1
    _passes: int = 0
    _grow_after: int = field(default_factory=lambda: GROW_AFTER)

    def fitted(self, size: int) -> None:
        """A pass of `size` items worked."""
        if self.limit is None:
            return
        self.proven = max(self.proven, size)
        self._passes += size >= self.limit
        if self._passes >= self._grow_after:
            self._passes, self.limit = 0, 2 * self.limit

    def too_large(self, size: int) -> None:
        """A pass of `size` > 1 items did not fit."""
        if self.limit is not None and size > self.proven > 1:
            self._grow_after = min(2 * self._grow_after, 64 * GROW_AFTER)
        self.limit = max(1, size // 2)
        self.proven = min(self.proven, self.limit)
        self._passes = 0


class Encoded(NamedTuple):
    """`vectors`: (m, dim) float32 of the items that fitted, in order; `failed`: place among the n → why it has none."""

    vectors: F32
    failed: dict[int, ItemError]


def encode_halving(
    encoder: Encoder | PlacedEncoder, prepared: Sequence[Any], size: FittingSize | None = None
) -> Encoded:
    """Encode; where memory is short, halve what is encoded at once, down to one item, inside the lease.

    Args:
        prepared: n items, or what `PlacedEncoder.stage` made of them.
        size: remembers what fitted; a `PlacedEncoder` has its own.

    An item that does not fit alone is a permanent failure of that item: the only item, or one of a batch of which others
    did fit. Where none of several fits, somebody else holds the memory, no item is at fault, and the last error is raised
    (transient). Every other error is raised unchanged; a sticky one of CUDA ends the process.
    """
    size = size or (encoder.fitting if isinstance(encoder, PlacedEncoder) else FittingSize())
    parts: list[F32] = []
    failed: dict[int, ItemError] = {}
    before, at = size.limit, 0
    while at < len(prepared):
        take = min(size.limit or len(prepared), len(prepared) - at)
        done = _attempt(encoder, prepared if take == len(prepared) else prepared[at : at + take])
        if not isinstance(done, Exception):
            if failed and not parts:
                size.limit = before  # the first that fits: those before it were at fault, not the memory
            size.fitted(take)
            parts.append(done)
            at += take
        elif take > 1:
            size.too_large(min(take, _together(encoder) or take))
        else:
            failed[at] = ItemError("out_of_memory", f"the item does not fit into memory alone: {done}")
            at += 1
            if parts:
                size.limit = before  # it is this item, not the memory
            elif at == len(prepared) > 1:
                raise done
    if len(parts) == 1:  # as nearly always: spare the copy
        return Encoded(parts[0], failed)
    return Encoded(np.concatenate(parts) if parts else np.zeros((0, encoder.dim), np.float32), failed)


def _attempt(encoder: Encoder | PlacedEncoder, prepared: Sequence[Any]) -> F32 | Exception:
    """The vectors, or what said that memory is short; then the memory of the attempt is given back."""
    try:
        return encoder.encode(prepared)
    except Exception as error:
        end_if_sticky(error)
        if not out_of_memory(error):
            raise
        short = error.with_traceback(None)  # its frames hold the tensors that are to be freed
    if isinstance(prepared, Staged):
        prepared.pieces.clear()
    if isinstance(encoder, PlacedEncoder):
        encoder.free()
    return short


def _together(encoder: Encoder | PlacedEncoder) -> int | None:
    """Above this size a smaller one changes nothing: the encoder cuts by itself."""
    return encoder.together if isinstance(encoder, PlacedEncoder) else None
