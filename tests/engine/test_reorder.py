"""Revisions that follow flips and demand: written by the evaluator, by a verb, and seen by everybody."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from cli.main import main
from orchestrator.core import plan
from orchestrator.core.metrics import top_k
from orchestrator.errors import ConflictError, NotFoundError, UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import locks
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import plans as plan_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, demand, galleries, rollouts, tuning
from orchestrator.service import reorder as reordering
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.invariants import check_invariants
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matrix import load_matrix, plan_rows
from tests.engine import platform
from tests.engine.test_living import some_batches


@pytest.fixture
def world(context, tmp_path):
    """`far` is worse than `old` here: many queries flip at once."""
    platform.embedded_gallery(context, tmp_path)
    platform.register_network(context, tmp_path, "far", seed=0, moved=0.1, kept=3)
    platform.certify_by_hand(context, "far")
    return context


def begin(context, **more):
    return advance.advance(context, platform.start(context, "far", **more).id)


def revision(context, rollout_id):
    with context.engine.connect() as connection:
        return plan_queries.newest_revision(connection, rollout_id)


def slow_priority(context, row):
    """Expected flips healed by each row, out of the ledger and the store alone."""
    with context.engine.connect() as connection:
        asked = load_query_set(
            connection, gallery_queries.query_set_by_name(connection, row.gallery_id, "asked")
        )
        old, far = (model_queries.model_by_name(connection, name) for name in ("old", "far"))
        before = load_matrix(connection, row.gallery_id, before=row.id).vectors
        now = load_matrix(connection, row.gallery_id)
    was_right = asked.relevance.hits(top_k(encode_uris(context.encoder(old), asked.uris)[0], before, 1)[1])
    found = top_k(encode_uris(context.encoder(far), asked.uris)[0], now.vectors, 1)[1]
    flipped = np.flatnonzero(was_right & ~asked.relevance.hits(found))
    credit = np.zeros(len(now.version))
    for query in flipped:
        rows = [r for r in {*asked.relevance.of(query), *found[query]} if now.version[r] != row.id]
        for waits in rows:
            credit[waits] += 1 / len(rows)
    return credit


def test_the_verb_takes_what_heals_the_most_open_flips_first(world):
    row = begin(world)
    some_batches(world, row.id, 3)
    credit = slow_priority(world, row)
    assert np.count_nonzero(credit) > 10
    done = reordering.reorder(world, row.id, "flips")
    assert (done.plan_revision, done.by) == (1, "flips")
    with world.engine.connect() as connection:
        row = rollout_queries.rollout_by_id(connection, row.id)
        first, second = (plan_rows(connection, row, no) for no in (0, 1))
    at = row.committed_items
    np.testing.assert_array_equal(first[:at], second[:at])
    order = sorted(
        first[at:].tolist(), key=lambda r: (-np.float32(credit[r] / credit.sum()), list(first).index(r))
    )
    np.testing.assert_array_equal(second[at:], order)
    assert done.items == np.count_nonzero(first != second)
    assert reordering.reorder(world, row.id, "flips").items == 0
    assert [f for f in check_invariants(world) if not f.ok] == []


def test_a_rollout_that_follows_flips_revises_its_plan_as_it_goes_on_and_ends_the_same(world):
    row = begin(world, reorder="flips")
    kept, lines, written = {}, [], []

    def tell(event, **keywords):
        lines.append((event, keywords.get("plan_revision")))

    evaluate_rollout(world, row.id, kept, tell)
    assert revision(world, row.id).no == 1, "flips were open before the first batch"
    for _ in range(30):
        if rollouts.reread(world, row.id).committed_batches == 15:
            break
        some_batches(world, row.id, 1)
        evaluate_rollout(world, row.id, kept, tell)
        written.append(revision(world, row.id))
    numbers = [each.no for each in written]
    assert numbers == sorted(numbers)
    assert numbers[-1] >= 3
    assert [no for event, no in lines if event == "rollout.replanned"] == list(range(1, numbers[-1] + 1))
    assert all(each.automatic for each in written)
    committed = [each.committed_items for each in {each.no: each for each in written}.values()]
    assert all(b - a >= 0.05 * row.n_items for a, b in pairwise(committed))
    assert platform.work(world, row.id).state == "finalizable"
    assert [f for f in check_invariants(world) if not f.ok] == []
    with world.engine.connect() as connection:
        [status] = read_view(connection, "rollout_status", id=row.id)
    assert status["plan_revision"] == revision(world, row.id).no


def test_a_few_items_are_not_worth_a_revision(world):
    row = begin(world, reorder="flips", batch_size=2)
    kept = {}
    evaluate_rollout(world, row.id, kept)
    some_batches(world, row.id, 1)
    assert 0 < rollouts.reread(world, row.id).committed_items < 12, "a twentieth of 240"
    for evaluators in (kept, {}):
        evaluate_rollout(world, row.id, evaluators)
        assert revision(world, row.id).no == 1
    assert reordering.reorder(world, row.id, "flips").items > 0, "there was something to move"
    assert revision(world, row.id).automatic is False


def test_an_evaluator_that_starts_anew_does_not_revise_before_its_time(world):
    row = begin(world, reorder="flips")
    evaluate_rollout(world, row.id, {})
    evaluate_rollout(world, row.id, {})
    assert revision(world, row.id).no == 1


def test_a_rollout_that_follows_nothing_keeps_its_plan_until_it_is_told_to(world):
    row = begin(world)
    evaluate_rollout(world, row.id, {})
    assert revision(world, row.id) is None
    tuning.set_values(world, row.id, dict([tuning.parse("reorder=flips")]))
    evaluate_rollout(world, row.id, {})
    assert revision(world, row.id).no == 1
    tuning.set_values(world, row.id, dict([tuning.parse("reorder=none")]))
    some_batches(world, row.id, 4)
    evaluate_rollout(world, row.id, {})
    assert revision(world, row.id).no == 1
    with pytest.raises(UsageError, match=r"reorder cannot be 'best'.*flips\+demand"):
        tuning.parse("reorder=best")


def test_only_the_flips_of_the_query_set_that_is_named_move_anything(world, tmp_path):
    more = platform.draw_pictures(tmp_path / "more", 2, seed=11)
    galleries.import_query_set(world, "pics", "kept-out", str(more))
    row = begin(world)
    with pytest.raises(NotFoundError, match="nowhere"):
        tuning.set_values(world, row.id, dict([tuning.parse("reorder_queryset=nowhere")]))
    credit = slow_priority(world, row)
    with world.engine.connect() as connection:
        first = plan_rows(connection, row, 0)
    rank = plan.invert(np.asarray(first))
    expected = sorted(first.tolist(), key=lambda r: (-np.float32(credit[r] / credit.sum()), rank[r]))
    plans = []
    for name in ("none", "asked"):
        tuning.set_values(world, row.id, dict([tuning.parse(f"reorder_queryset={name}")]))
        done = reordering.reorder(world, row.id, "flips")
        with world.engine.connect() as connection:
            plans.append(plan_rows(connection, row, done.plan_revision).tolist())
    assert plans[0] != expected, "both sets have flips"
    assert plans[1] == expected


def test_demand_moves_what_is_retrieved_most_and_both_together_weigh_both(world):
    row = begin(world)
    with pytest.raises(ConflictError, match="gallery demand import"):
        reordering.reorder(world, row.id, "demand")
    with world.engine.connect() as connection:
        first = plan_rows(connection, row, 0)
    asked_for = first[[200, 100, 150]]
    with world.engine.begin() as connection:
        counts = {int(r): c for r, c in zip(asked_for, (9, 5, 1), strict=True)}
        demand.add_counts(connection, row.gallery_id, counts)
    reordering.reorder(world, row.id, "demand")
    with world.engine.connect() as connection:
        second = plan_rows(connection, row, 1)
    np.testing.assert_array_equal(second, [*asked_for, *(r for r in first if r not in asked_for)])
    credit = slow_priority(world, row)
    both = credit / credit.sum()
    both[asked_for] += np.array([9, 5, 1]) / 15
    reordering.reorder(world, row.id, "flips+demand")
    with world.engine.connect() as connection:
        third = plan_rows(connection, row, 2)
    rank = plan.invert(np.asarray(first))
    np.testing.assert_array_equal(
        third, sorted(first.tolist(), key=lambda r: (-np.float32(both[r]), rank[r]))
    )


def test_what_cannot_be_reranked_is_refused_in_one_sentence(world, monkeypatch):
    row = begin(world)
    with pytest.raises(UsageError, match=r"--by 'best'.*flips\+demand"):
        reordering.reorder(world, row.id, "best")
    monkeypatch.setattr(reordering, "MOST_BY_HAND", 1)
    reordering.reorder(world, row.id, "flips")
    with pytest.raises(ConflictError, match="1 times by hand"):
        reordering.reorder(world, row.id, "flips")
    monkeypatch.undo()
    monkeypatch.setattr(reordering, "WAIT_S", 0.0)
    with world.engine.connect() as connection:
        assert locks.try_lock_evaluator(connection, row.id)
        with pytest.raises(ConflictError, match="another process is counting them"):
            reordering.reorder(world, row.id, "flips")
        locks.unlock_evaluator(connection, row.id)
    rollouts.cancel(world, row.id, force=True)
    with pytest.raises(ConflictError, match="cancelled"):
        reordering.reorder(world, row.id, "flips")


def test_the_command_says_what_it_moved(world, environment, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    row = begin(world)
    assert main(["rollout", "reorder", "pics@latest", "--by", "flips", "-o", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["plan_revision"], said["by"]) == (1, "flips")
    assert said["items"] > 0
    assert main(["rollout", "reorder", "pics"]) == 0
    assert "nothing to move" in capsys.readouterr().err
    assert main(["rollout", "reorder", "pics", "--by", "demand"]) == 4
    assert main(["rollout", "set", "pics", "reorder=flips+demand"]) == 0
    assert rollouts.reread(world, row.id).config["reorder"] == "flips+demand"
    assert main(["rollout", "start", "pics", "--to", "kin", "--reorder", "sideways"]) == 2
