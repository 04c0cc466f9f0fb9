"""Who is stuck, by what is finished and not by pulse; and how long a restart waits."""

from __future__ import annotations

from orchestrator.core.supervision import Sight, look, restart_delay_s, stuck


def watch_of(*sights):
    """A sight each second, as (finished, held, beat)."""
    watch = None
    for second, (finished, held, beat) in enumerate(sights):
        watch = look(watch, Sight(finished, frozenset(held), beat), float(second))
    return watch


def test_a_worker_that_beats_and_holds_and_finishes_nothing_is_stuck():
    watch = watch_of(*[(0, {"1/0/1"}, beat) for beat in range(6)])
    assert stuck(watch, 5.0, stuck_s=5.0, silent_s=5.0) == "held 1 batches and finished none for 5 s"
    assert stuck(watch, 4.9, stuck_s=5.0, silent_s=5.0) is None


def test_one_more_claim_is_no_progress():
    watch = watch_of((0, {"a"}, 0), (0, {"a", "b"}, 1), (0, {"a", "b", "c"}, 2))
    assert stuck(watch, 5.0, stuck_s=5.0, silent_s=5.0) is not None


def test_a_claim_let_go_of_is_progress_and_so_is_a_count():
    assert stuck(watch_of((0, {"a", "b"}, 0), (0, {"b", "c"}, 1)), 5.0, stuck_s=5.0, silent_s=5.0) is None
    assert stuck(watch_of((0, {"a"}, 0), (1, {"a"}, 1)), 5.0, stuck_s=5.0, silent_s=5.0) is None


def test_an_idle_worker_that_beats_is_never_stuck():
    watch = watch_of(*[(0, set(), beat) for beat in range(100)])
    assert stuck(watch, 100.0, stuck_s=5.0, silent_s=5.0) is None


def test_time_begins_with_the_claim_not_with_the_idleness_before():
    assert (
        stuck(
            watch_of(*[(0, set(), beat) for beat in range(9)], (0, {"a"}, 9)), 10.0, stuck_s=5.0, silent_s=5.0
        )
        is None
    )


def test_a_worker_without_a_heartbeat_is_stuck_though_it_holds_nothing():
    assert (
        stuck(watch_of((0, set(), 7), (0, set(), 7)), 5.0, stuck_s=5.0, silent_s=5.0)
        == "had no heartbeat for 5 s"
    )


def test_silence_has_a_limit_of_its_own():
    watch = watch_of((0, set(), 7), (0, set(), 7))
    assert stuck(watch, 5.0, stuck_s=1.0, silent_s=6.0) is None
    assert stuck(watch, 6.0, stuck_s=99.0, silent_s=6.0) is not None


def test_restarts_wait_twice_as_long_each_time_up_to_half_a_minute():
    assert [restart_delay_s(n) for n in range(9)] == [0.5, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert restart_delay_s(10**6) == 30
