"""Clips of Atari 2600 games, played at random by the Arcade Learning Environment: `pip install 'hotrefresh[atari]'`.

A clip: 32 frames, every fourth of a game, (32, 210, 160, 3) uint8; a few games show up to 250 lines. **The class is the
game** (relevance = same game, another play). What is played comes from a hash of the URI: how long the game has gone on, and
each move. 104 games; the four of two players alone are left out. ale-py holds the games and is GPL, so it is an extra.

Splits, by a fixed order of the games:

- `train`: 60 games, four plays each. `gallery`: likewise all games, 416 clips.
- `queries`: the other 44 games, two plays that are nowhere else: 88 clips.
"""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from models.datasets import Item
from models.errors import ItemError, UsageError

U8 = npt.NDArray[np.uint8]

FRAMES = 32
EVERY = 4
SPLITS = ("gallery", "queries", "train")

_TRAINED = 60
_PLAYS, _ASKED = range(4), range(4, 6)
_BEFORE = (120, 600)  # frames, of 60 a second: most titles are over by then
# The emulator's consoles are not known to be independent of each other.
_playing = threading.Lock()


def list_items(split: str | None = None) -> list[Item]:
    """The clips of a split ("gallery" unless named), by game and play.

    Raises UsageError: an unknown split, or ale-py is not installed.
    """
    split = split or "gallery"
    if split not in SPLITS:
        raise UsageError(f"atari has no split {split[:50]!r}; there are {', '.join(SPLITS)}.")
    games = _games()
    wanted = {"gallery": games, "queries": games[_TRAINED:], "train": games[:_TRAINED]}[split]
    plays = _ASKED if split == "queries" else _PLAYS
    return [Item(f"{game}/{play}", f"atari:{game}/{play}", game) for game in wanted for play in plays]


def read(uri: str) -> U8:
    """The frames, (32, H, 160, 3) uint8, of `atari:<game>/<play>`.

    Raises:
        ItemError: malformed, or no such game.
        UsageError: ale-py is not installed.
    """
    game, _, play = uri.partition(":")[2].rpartition("/")
    if not (play.isascii() and play.isdecimal() and len(play) <= 9):
        raise ItemError("malformed", f"{uri[:80]!r} is no play of a game: write atari:pong/3")
    if game not in _games():  # the emulator ends the process over a game that it does not know
        raise ItemError("missing", f"there is no game {game[:80]!r}.")
    rng = np.random.default_rng(
        int.from_bytes(hashlib.sha256(f"hotrefresh-atari-1:{uri}".encode()).digest()[:8])
    )
    with _playing:
        return _play(game, rng)


def _play(game: str, rng: np.random.Generator) -> U8:
    ale = _emulator()
    console = ale.ALEInterface()
    console.setInt("random_seed", int(rng.integers(2**31)))
    console.setFloat("repeat_action_probability", 0.0)
    console.loadROM(ale.roms.get_rom_path(game))
    moves = console.getMinimalActionSet()
    before, frames = int(rng.integers(*_BEFORE)), []
    for frame in range(before + FRAMES * EVERY):
        console.act(moves[rng.integers(len(moves))])
        if console.game_over():
            console.reset_game()
        if frame >= before and (frame - before) % EVERY == 0:
            frames.append(console.getScreenRGB())
    return np.stack(frames)


@lru_cache(maxsize=1)
def _games() -> tuple[str, ...]:
    """The games that can be played, in a fixed order that says nothing of them."""
    ale = _emulator()
    known = [name for name in ale.roms.get_all_rom_ids() if _supported(ale, name)]
    return tuple(
        sorted(known, key=lambda name: hashlib.sha256(f"hotrefresh-atari-1:{name}".encode()).digest())
    )


def _supported(ale: Any, name: str) -> bool:
    path = ale.roms.get_rom_path(name)
    return path is not None and ale.ALEInterface.isSupportedROM(path) is not None


def _emulator() -> Any:
    try:
        import ale_py
        import ale_py.roms
    except ImportError as error:
        raise UsageError(
            "ale-py is not installed: pip install 'hotrefresh[atari]' brings it and the games (GPL-2.0)."
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py
