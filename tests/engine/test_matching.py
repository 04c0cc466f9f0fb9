"""Copy detection in the platform: thresholds along a rollout on the copies, in the ledger, by command, on the dashboard."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest

from cli.main import main
from orchestrator.core.matching_metrics import matching_metrics
from orchestrator.core.metrics import top_k
from orchestrator.dashboard.words import percent
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import background, embed, galleries
from orchestrator.service import start as starting
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform
from tests.engine.dashboard_server import browser_of


@pytest.fixture
def copies(context, tmp_path):
    """Gallery `copies` embedded by `old`, with the queries `asked`; half of them have no answer."""
    galleries.create_gallery(context, "copies", "copies:references")
    galleries.import_query_set(context, "copies", "asked", "copies:queries")
    platform.register_network(context, tmp_path, "old", seed=0)
    platform.register_network(context, tmp_path, "far", seed=0, moved=0.1)
    platform.work(context, embed.embed_gallery(context, "copies", "old").id)
    platform.certify_by_hand(context, "far", "copies")
    return context


@pytest.fixture
def hotrefresh(context, settings, monkeypatch, capsys, tmp_path):
    """Runs a command against this test's ledger: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name, value in background.worker_environment(settings).items():
        if name.startswith("HOTREFRESH_"):
            monkeypatch.setenv(name, value)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def view(context, name, **filters):
    with context.engine.connect() as connection:
        return read_view(connection, name, limit=10_000, **filters)


def searched_in_full(context, model, rollout_id=None):
    """(right, score) of every query's first answer, and the metrics of the list: by searching the gallery as it is stored."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "copies")
        queries = load_query_set(
            connection, gallery_queries.query_set_by_name(connection, gallery.id, "asked")
        )
        matrix = (
            load_matrix(connection, gallery.id, before=rollout_id)
            if rollout_id
            else load_matrix(connection, gallery.id)
        )
        encoder = context.encoder(model_queries.model_by_name(connection, model))
    vectors, _ = encode_uris(encoder, queries.uris)
    scores, rows = top_k(vectors, matrix.vectors, 1)
    relevance = queries.relevance
    truth = np.repeat(np.arange(len(relevance)), np.diff(relevance.offsets))
    found = matching_metrics(truth, relevance.rows, np.arange(len(rows)), rows[:, 0], scores[:, 0])
    return relevance.hits(rows), scores[:, 0], found


def test_a_rollout_on_copies_shows_its_threshold_by_coverage_in_ledger_view_command_and_dashboard(
    copies, hotrefresh
):
    row = starting.start(copies, starting.StartRequest("copies", "far", batch_size=16))
    row = platform.work(copies, row.id)
    points = view(copies, "match_threshold", rollout=row.id)
    assert [each["coverage"] for each in points] == [0, 0.25, 0.5, 0.75, 1]
    assert {(each["queryset"], each["n"], each["true_pairs"]) for each in points} == {("asked", 336, 168)}
    was_right, was, before = searched_in_full(copies, "old", row.id)
    right, scores, after = searched_in_full(copies, "far")
    newest = points[-1]
    for name, whole in (("", after), ("old_", before)):
        assert newest[f"{name}micro_ap"] == pytest.approx(whole.micro_ap, abs=1e-6)
        assert newest[f"{name}recall_at_p90"] == whole.recall_at_precision
        assert newest[f"{name}threshold"] == pytest.approx(whole.threshold, abs=1e-6)
    cut = newest["old_threshold"]
    accepted_before, accepted = (was >= cut - 1e-6) & was_right, (scores >= cut - 1e-6) & right
    assert newest["lost"] == (accepted_before & ~accepted).sum() > 0
    assert newest["gained"] == (accepted & ~accepted_before).sum()
    assert newest["accepted"] == (scores >= cut - 1e-6).sum()
    assert len({each["threshold"] for each in points}) > 2, "the threshold moves with the mixture"

    code, out, _ = hotrefresh("ledger", "thresholds", "copies", "-o", "json")
    assert code == 0
    assert [each["threshold"] for each in json.loads(out)["thresholds"]] == [
        each["threshold"] for each in points
    ]
    code, out, _ = hotrefresh(
        "ledger", "thresholds", "copies", "--newest", "--queryset", "asked", "-o", "json"
    )
    assert [each["lost"] for each in json.loads(out)["thresholds"]] == [newest["lost"]]

    with browser_of(copies) as client:
        page = html.unescape(client.get(f"/rollouts/{row.id}").text)
    assert "Threshold at 90 % precision on asked" in page
    assert (
        f"score at least {newest['threshold']:.3f}, 90 % are right at {percent(1.0)} of the gallery" in page
    )
    assert f"{newest['lost']} right answers are no longer accepted, {newest['gained']} are only now" in page
