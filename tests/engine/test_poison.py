"""Batches that fail: attempts at claim, splitting, quarantine with evidence, the breaker."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, embed, galleries, poison, rollouts, tuning
from orchestrator.service.invariants import check_invariants
from tests.engine import platform
from workers.drain import drain


def status(context, rollout_id):
    with context.engine.connect() as connection:
        return read_view(connection, "rollout_status", id=rollout_id)[0]


def quarantine(context, rollout_id):
    with context.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            f"SELECT i.key, q.reason, q.message, q.evidence FROM quarantine q JOIN item i ON i.row = q.row "
            f"JOIN rollout r ON r.id = q.rollout_id AND r.gallery_id = i.gallery_id WHERE q.rollout_id = {rollout_id}"
        )
        return [tuple(row) for row in rows]


def assert_sound(context):
    assert [f for f in check_invariants(context) if not f.ok] == []


@pytest.fixture
def sixty_four(context, tmp_path, monkeypatch):
    """A gallery of 64 items in one batch, planned and ready to drain; retries are due at once."""
    folder = platform.draw_pictures(tmp_path / "pictures", per_class=2)
    for path in sorted(folder.glob("*/*.png"))[64:]:
        path.unlink()
    galleries.create_gallery(context, "pics", str(folder))
    platform.register_network(context, tmp_path, "old", seed=0)
    monkeypatch.setattr("orchestrator.service.poison.RETRY_IN_S", (0.0, 0.0))
    return advance.advance(context, embed.embed_gallery(context, "pics", "old", batch_size=64).id)


@pytest.mark.parametrize("bad", ["class-00/0.png", "class-13/1.png", "class-31/1.png"])
def test_of_64_items_one_that_fails_is_alone_within_39_tries(context, sixty_four, tmp_path, monkeypatch, bad):
    from workers.encode import PlacedEncoder

    real, tries = PlacedEncoder.encode, []
    wrong = np.asarray(Image.open(tmp_path / "pictures" / bad))

    def encode(self, prepared):
        tries.append(len(prepared))
        if any((each == wrong).all() for each in prepared):
            raise RuntimeError("kernel launch failure")
        return real(self, prepared)

    monkeypatch.setattr(PlacedEncoder, "encode", encode)
    drain(context, sixty_four.id, owner="test")
    assert len(tries) <= 39, status(context, sixty_four.id)
    assert tries[:3] == [64, 64, 64]  # split after three attempts, not before
    [(key, reason, message, evidence)] = quarantine(context, sixty_four.id)
    assert (key, reason) == (bad, "poison")
    assert "kernel launch failure" in message
    assert evidence["model"] == "old"
    assert evidence["attempt"] == 4
    seen = status(context, sixty_four.id)
    assert (seen["committed"], seen["quarantined"], seen["pending"]) == (63, 1, 0)
    assert_sound(context)


def test_an_item_that_kills_its_workers_is_found_though_nobody_lives_to_say_so(context, sixty_four):
    """Claims whose lease runs out without a word, as of a worker that was killed; rank 37 is the killer."""
    killer, claims = 37, 0
    tuning.set_values(
        context, sixty_four.id, {"failure_budget": 1.0}
    )  # the others are committed as holes, for short
    while status(context, sixty_four.id)["pending"] or status(context, sixty_four.id)["leased"]:
        with context.engine.begin() as connection:
            claim = batch_queries.claim_batch(connection, sixty_four.id, "mortal", 0.0)
        assert claim is not None
        if claim.attempt > poison.MAX_ATTEMPTS:
            poison.isolate(context, claim)
            continue
        claims += 1
        if not claim.first_rank <= killer < claim.first_rank + claim.n:
            with context.engine.begin() as connection:
                assert batch_queries.commit_batch(connection, claim, crc=None, holes=range(claim.n))
    assert claims <= 39
    [(key, reason, message, _)] = quarantine(context, sixty_four.id)
    assert (key, reason) == ("class-18/1.png", "poison")
    assert "may kill the process" in message


def test_a_clean_stop_does_not_count_as_an_attempt(context, sixty_four):
    for _ in range(10):
        with context.engine.begin() as connection:
            claim = batch_queries.claim_batch(connection, sixty_four.id, "polite", 30)
            assert claim.attempt == 1
            batch_queries.give_back(connection, claim)


def test_halves_never_write_where_something_was_written_before(context, sixty_four):
    with context.engine.begin() as connection:
        claim = batch_queries.claim_batch(connection, sixty_four.id, "first", 0.0)
        assert batch_queries.split_batch(connection, claim)
    with context.engine.begin() as connection:
        lower = batch_queries.claim_batch(connection, sixty_four.id, "a", 30)
        upper = batch_queries.claim_batch(connection, sixty_four.id, "b", 30)
    assert [(c.first_rank, c.n, c.attempt) for c in (lower, upper)] == [(0, 32, 1), (32, 32, 1)]
    assert min(lower.fence, upper.fence) > claim.fence


def test_a_split_by_somebody_whose_lease_was_taken_over_changes_nothing(context, sixty_four):
    with context.engine.begin() as connection:
        stale = batch_queries.claim_batch(connection, sixty_four.id, "slow", 0.0)
    with context.engine.begin() as connection:
        batch_queries.claim_batch(connection, sixty_four.id, "quick", 30)
    with context.engine.begin() as connection:
        assert not batch_queries.split_batch(connection, stale)
    with context.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM batch").scalar_one() == 1


def test_many_failures_in_a_row_pause_the_rollout_with_the_reason(context, sixty_four, monkeypatch):
    from workers.encode import PlacedEncoder

    def encode(self, prepared):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(PlacedEncoder, "encode", encode)
    result = drain(context, sixty_four.id, owner="test")
    seen = status(context, sixty_four.id)
    assert seen["state"] == "paused"
    assert "30 batches failed one after the other" in seen["reason"]
    assert "no kernel image" in seen["reason"]
    assert result.failed == poison.FAILURES_IN_ROW
    assert (seen["committed"], seen["leased"]) == (0, 0)


def test_a_resumed_rollout_starts_with_a_fresh_failure_budget(context, sixty_four, monkeypatch):
    test_many_failures_in_a_row_pause_the_rollout_with_the_reason(context, sixty_four, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr("orchestrator.service.poison.RETRY_IN_S", (0.0, 0.0))
    rollouts.resume(context, sixty_four.id)
    assert platform.work(context, sixty_four.id).state == "finalized"
    assert_sound(context)
