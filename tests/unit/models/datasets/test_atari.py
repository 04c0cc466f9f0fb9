"""Clips of games: played the same everywhere, another play each, nothing that ends the process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from models.datasets import list_items, modalities_of, read_item
from models.errors import ItemError, UsageError

pytest.importorskip("ale_py", reason="ale-py is not installed: pip install 'hotrefresh[atari]'")
from models.datasets import atari


def test_splits_are_of_the_games_they_say():
    gallery, queries, train = (list_items("atari", split).items for split in ("gallery", "queries", "train"))
    assert [len(each) for each in (gallery, queries, train)] == [416, 88, 240]
    classes = [{item.label for item in each} for each in (gallery, queries, train)]
    assert (len(classes[0]), classes[0]) == (104, classes[1] | classes[2])
    assert not classes[1] & classes[2]
    assert not {item.uri for item in queries} & {item.uri for item in gallery}
    assert list_items("atari").items == gallery
    assert modalities_of("atari") == ("video",)
    with pytest.raises(UsageError, match="no split 'test'"):
        list_items("atari", "test")


def test_a_play_is_the_same_each_time_and_no_other():
    frames = read_item("atari:pong/3")
    assert (frames.shape, frames.dtype) == ((32, 210, 160, 3), np.uint8)
    assert np.array_equal(frames, read_item("atari:pong/3"))
    assert not np.array_equal(frames, read_item("atari:pong/4"))
    assert len(np.unique(frames.reshape(32, -1), axis=0)) > 16, "it moves"
    # In another process, in another order: nothing of it is the clock's or the emulator's state.
    code = (
        "from models.datasets import read_item; read_item('atari:breakout/0'); "
        "import hashlib; print(hashlib.sha256(read_item('atari:pong/3').tobytes()).hexdigest())"
    )
    import hashlib

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == hashlib.sha256(frames.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("atari:pong", "malformed"),
        ("atari:pong/x", "malformed"),
        ("atari:pong/1234567890", "malformed"),
        ("atari:combat/1", "missing"),  # of two players: the emulator ends the process over it
        ("atari:../../etc/passwd/1", "missing"),
    ],
)
def test_what_is_no_play_is_an_error_and_ends_nothing(uri, reason):
    with pytest.raises(ItemError) as caught:
        read_item(uri)
    assert caught.value.reason == reason


def test_without_the_emulator_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    atari._games.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'hotrefresh\[atari\]'"):
        list_items("atari")
    with pytest.raises(UsageError, match="ale-py is not installed"):
        read_item("atari:pong/1")
