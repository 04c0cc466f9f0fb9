"""A proxy on loopback that hurts the connections through it: half-open, slow, sliced, cut, refused.

The fault is switched while connections live. Each connection has two threads, one a direction, and counters; what is
random (the sizes of slices) comes from the seed, the connection's number and the direction.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

Address = tuple[str, int] | Path
"""(host, port), or the path of a Unix socket."""

_CHUNK = 65_536
_POLL_S = 0.02
_RESET = struct.pack(
    "ii", 1, 0
)  # linger 0 s: closing sends RST, as from a host that knows nothing of the connection


class Side(Enum):
    """Who sent the bytes."""

    CLIENT = "client"
    SERVER = "server"


class Moment(Enum):
    """When a connection is cut around the bytes that were looked for."""

    BEFORE = "the last of them is not forwarded"
    FORWARDED = "they are, the answer is not waited for"
    ANSWERED = "they are, and the first answer is swallowed: what was asked for has happened, nobody is told"


@dataclass(frozen=True)
class Pass:
    """Forward everything."""


@dataclass(frozen=True)
class HalfOpen:
    """Accept and swallow, no FIN, no RST. A connection that was half-open once stays so, whatever comes after."""


@dataclass(frozen=True)
class Slow:
    """Forward this many bytes a second in each direction of each connection."""

    bytes_per_s: int


@dataclass(frozen=True)
class Sliced:
    """Forward pieces of 1 to 7 bytes with a pause after each, so that they arrive as pieces."""

    pause_s: float = 0.0002


@dataclass(frozen=True)
class CutAfter:
    """Cut a connection when exactly this many bytes of one side were forwarded; after `times` connections, pass."""

    n_bytes: int
    side: Side
    times: int = 1


@dataclass(frozen=True)
class CutWhen:
    """Cut a connection around a pattern of bytes, also where it comes in pieces.

    Attributes:
        skip: how often the pattern is let through first, counted over all connections.
        times: how many cuts; then pass.
    """

    pattern: bytes
    side: Side = Side.CLIENT
    moment: Moment = Moment.ANSWERED
    skip: int = 0
    times: int = 1


@dataclass(frozen=True)
class Refuse:
    """No new connection is taken (ECONNREFUSED); those that are there go on."""


Mode = Pass | HalfOpen | Slow | Sliced | CutAfter | CutWhen | Refuse


@dataclass
class Counters:
    """What one connection carried. `ended`: who ended it ("client", "server", "cut", "closed"), None while it lives."""

    number: int
    received: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    forwarded: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    pieces: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    half_open: bool = False
    ended: str | None = None


class Proxy:
    """Listens on a loopback port (or a Unix socket) and connects each caller to `target`."""

    def __init__(self, target: Address, *, listen: Address = ("127.0.0.1", 0), seed: int = 0) -> None:
        self.target = target
        self.seed = seed
        self.cuts = 0
        self._lock = threading.Lock()
        self._mode: Mode = Pass()
        self._skip = self._times = 0
        self._links: list[_Link] = []
        self._over = threading.Event()
        self._listener: socket.socket | None = None
        self.address = listen
        self._listen()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert isinstance(self.address, tuple)
        return self.address[1]

    @property
    def mode(self) -> Mode:
        """The fault that stands."""
        return self._mode

    def set(self, mode: Mode) -> None:
        """Switch the fault, for the connections that live (but for Refuse) and for those to come."""
        with self._lock:
            self._mode = mode
            self._skip = getattr(mode, "skip", 0)
            self._times = getattr(mode, "times", 0)
            if isinstance(mode, HalfOpen):
                for link in self._links:
                    link.counters.half_open = True
            if isinstance(mode, Refuse):
                self._unlisten()
            elif self._listener is None:
                self._listen()

    def half_open_now(self) -> int:
        """The connections that live become half-open, new ones pass; returns how many there were."""
        living = sum(counters.ended is None for counters in self.connections())
        self.set(HalfOpen())
        self.set(Pass())
        return living

    def reset_all(self) -> None:
        """Cut every connection that lives."""
        for link in list(self._links):
            link.end("cut", reset=True)

    def connections(self) -> list[Counters]:
        """Counters of all connections so far, in order."""
        with self._lock:
            return [link.counters for link in self._links]

    def close(self) -> None:
        """End everything."""
        self._over.set()
        with self._lock:
            self._unlisten()
        for link in list(self._links):
            link.end("closed", reset=False)
        self._thread.join(timeout=5)
        for link in self._links:
            link.join()
        if isinstance(self.address, Path):
            self.address.unlink(missing_ok=True)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _listen(self) -> None:
        family = socket.AF_UNIX if isinstance(self.address, Path) else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        if isinstance(self.address, Path):
            self.address.unlink(missing_ok=True)
            listener.bind(str(self.address))
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(self.address)
            self.address = listener.getsockname()
        listener.listen(128)
        self._listener = listener

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        while not self._over.is_set():
            with self._lock:
                client = self._take()
                if client is not None:
                    counters = Counters(len(self._links), half_open=isinstance(self._mode, HalfOpen))
                    self._links.append(_Link(self, client, counters))
                    continue
            time.sleep(_POLL_S / 4)

    def _take(self) -> socket.socket | None:
        """A caller that waits; None: there is none. Holding the lock, so that none slips through while switching."""
        if self._listener is None or not select.select([self._listener], [], [], 0)[0]:
            return None
        with contextlib.suppress(OSError):
            return self._listener.accept()[0]
        return None

    def cut_due(self, mode: Mode) -> bool:
        """Whether this match is the one to cut at; counts it."""
        with self._lock:
            if mode is not self._mode or self._times <= 0:
                return False
            if self._skip > 0:
                self._skip -= 1
                return False
            self._times -= 1
            self.cuts += 1
            return True


class _Link:
    """One connection: two sockets, two threads."""

    def __init__(self, proxy: Proxy, client: socket.socket, counters: Counters) -> None:
        self._proxy = proxy
        self.counters = counters
        self._client = client
        self._server: socket.socket | None = None
        self._over = threading.Event()
        self._cut_at_answer: Side | None = None
        self._ending = threading.Lock()
        if client.family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [threading.Thread(target=self._begin, daemon=True)]
        self._threads[0].start()

    def end(self, why: str, *, reset: bool) -> None:
        """Close both sockets; `reset`: the client gets an RST and loses what it has not read."""
        with self._ending:
            if self._over.is_set():
                return
            self.counters.ended = why
            self._over.set()
            if reset and self._client.family == socket.AF_INET:
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            for each in (self._client, self._server):
                if each is not None:
                    each.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=5)

    def _begin(self) -> None:
        """Connect to the target, unless the caller was born half-open, then forward both ways."""
        if not self.counters.half_open:
            target = self._proxy.target
            try:
                if isinstance(target, Path):
                    self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    self._server.connect(str(target))
                else:
                    self._server = socket.create_connection(target, timeout=10)
                    self._server.settimeout(None)
                    self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                self.end("server", reset=True)
                return
            back = threading.Thread(
                target=self._pump, args=(self._server, self._client, Side.SERVER), daemon=True
            )
            self._threads.append(back)
            back.start()
        self._pump(self._client, self._server, Side.CLIENT)

    def _pump(self, source: socket.socket, sink: socket.socket | None, side: Side) -> None:
        dice = random.Random(f"{self._proxy.seed}/{self.counters.number}/{side.value}")
        tail = b""
        try:
            while not self._over.is_set():
                if not select.select([source], [], [], _POLL_S)[0]:
                    continue
                data = source.recv(_CHUNK)
                if not data:
                    self._source_ended(side)
                    return
                self.counters.received[side] += len(data)
                if self.counters.half_open or sink is None:
                    continue
                if self._cut_at_answer not in (None, side):
                    self.end("cut", reset=True)
                    return
                tail = self._forward(data, sink, side, dice, tail)
        except (OSError, ValueError):  # a closed socket has descriptor −1
            self.end(side.value, reset=False)

    def _source_ended(self, side: Side) -> None:
        """A FIN is passed on by ending both; of a half-open connection the other side is never told."""
        if not self.counters.half_open:
            self.end(side.value, reset=False)
        elif side is Side.CLIENT:
            self.counters.ended = side.value
            self._client.close()

    def _forward(
        self, data: bytes, sink: socket.socket, side: Side, dice: random.Random, tail: bytes
    ) -> bytes:
        """Send on as the mode says; returns the last bytes, in which a pattern may have begun."""
        mode = self._proxy.mode
        cut_at: int | None = None
        if isinstance(mode, CutAfter) and mode.side is side:
            left = mode.n_bytes - self.counters.forwarded[side]
            if left <= len(data) and self._proxy.cut_due(mode):
                cut_at = max(0, left)
        elif isinstance(mode, CutWhen) and mode.side is side:
            cut_at = self._cut_place(mode, data, tail)
            tail = (tail + data)[-(len(mode.pattern) - 1) :] if len(mode.pattern) > 1 else b""
        if cut_at is not None and isinstance(mode, CutWhen) and mode.moment is not Moment.BEFORE:
            self._cut_at_answer = side  # before anything is sent: the answer may be here sooner than we cut
        for piece in _pieces(data if cut_at is None else data[:cut_at], mode, dice):
            if self.counters.half_open:
                return b""
            sink.sendall(piece)
            self.counters.forwarded[side] += len(piece)
            self.counters.pieces[side] += 1
        if cut_at is not None and not (isinstance(mode, CutWhen) and mode.moment is Moment.ANSWERED):
            self.end("cut", reset=True)
        return tail

    def _cut_place(self, mode: CutWhen, data: bytes, tail: bytes) -> int | None:
        """How many bytes of `data` still go through; None: no cut."""
        seen, begin = tail + data, 0
        while (at := seen.find(mode.pattern, begin)) >= 0:
            begin = at + len(mode.pattern)
            if self._proxy.cut_due(mode):
                return begin - len(tail) - 1 if mode.moment is Moment.BEFORE else len(data)
        return None


def _pieces(data: bytes, mode: Mode, dice: random.Random) -> Iterator[bytes]:
    """The data as it is sent on, with the pauses."""
    if isinstance(mode, Sliced):
        at = 0
        while at < len(data):
            size = dice.randint(1, 7)
            yield data[at : at + size]
            at += size
            time.sleep(mode.pause_s)
    elif isinstance(mode, Slow):
        step = max(1, int(mode.bytes_per_s * _POLL_S))
        for at in range(0, len(data), step):
            time.sleep(len(data[at : at + step]) / mode.bytes_per_s)
            yield data[at : at + step]
    elif data:
        yield data
