"""The model is switched under load before three shard processes and the one that merges them: no search fails, none mixes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.context import Context
from tests.faults import world
from tests.faults.test_swaps import ITEMS, load, server, swap

SHARDS, SWAPS = 3, 8


@pytest.mark.faults  # half a minute; one server's swaps are the quick part (test_swaps)
def test_swaps_before_shards_fail_and_mix_no_answer(context: Context, tmp_path: Path) -> None:
    """Every second swap's model embeds the gallery before it is taken back, so that answers come from between batches too."""
    world.build(context, tmp_path / "world", ITEMS)
    context.settings = context.settings.model_copy(update={"shard_rows": 4})
    with ExitStack() as stack:

        def start(name: str, *options: str, searched: bool = False) -> str:
            return stack.enter_context(server(context, tmp_path / f"{name}.log", *options, searched=searched))

        shards = [start(f"shard-{n}", "--shard", f"{n}/{SHARDS}") for n in range(1, SHARDS + 1)]
        front = start("front", *(part for url in shards for part in ("--merge", url)), searched=True)
        watcher = stack.enter_context(Client(front))
        with load([front]) as running:
            took = [each for number in range(SWAPS // 2) for each in swap(context, [watcher], number)]
    assert not running.faults, running.faults[:3]
    assert min(running.answers.values()) > 0
    assert len(took) == SWAPS
    print(f"{sum(running.answers.values())} answers; seen after {[round(each, 2) for each in took]} s")
