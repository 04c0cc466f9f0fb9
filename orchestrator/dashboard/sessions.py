"""Who sits in front of the dashboard: a random cookie each, which of them have signed in, and the token of their forms."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable

LIFETIME_S = 12 * 3600.0
MOST = 1000


class Sessions:
    """Sessions of this process. They end with it, after `LIFETIME_S`, or at sign-out; of too many the oldest ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._open_until: dict[str, float] = {}
        self._lock = threading.Lock()

    @staticmethod
    def new_seat() -> str:
        """A cookie that no one can guess. It means nothing until it is signed in."""
        return secrets.token_urlsafe(32)

    def sign_in(self) -> str:
        """A new cookie that is signed in: one from before the sign-in is never promoted."""
        seat = self.new_seat()
        with self._lock:
            now = self._clock()
            self._open_until = {s: until for s, until in self._open_until.items() if until > now}
            while len(self._open_until) >= MOST:
                del self._open_until[next(iter(self._open_until))]
            self._open_until[seat] = now + LIFETIME_S
        return seat

    def is_signed_in(self, seat: str) -> bool:
        """Whether this cookie is signed in and its time is not over."""
        with self._lock:
            return self._open_until.get(seat, float("-inf")) > self._clock()

    def sign_out(self, seat: str) -> None:
        """End a session."""
        with self._lock:
            self._open_until.pop(seat, None)

    def form_token(self, seat: str) -> str:
        """What a form of this seat must hand back: nobody can know it who does not read our pages."""
        return hmac.new(self._secret, b"form:" + seat.encode(), hashlib.sha256).hexdigest()

    def fits(self, seat: str, token: str) -> bool:
        """Whether a form's token is this seat's."""
        return hmac.compare_digest(self.form_token(seat).encode(), token.encode())
