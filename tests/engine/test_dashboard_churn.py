"""The dashboard on query sets with labels, with clicks and with nothing: each shows what is known, and each its own curve."""

from __future__ import annotations

import html
import re

import pytest

from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.service.wait import read_status
from tests.engine.dashboard_server import browser_of, figures
from tests.engine.test_churn import refreshed, settings, view, watched

__all__ = ["refreshed", "settings", "watched"]  # fixtures


@pytest.fixture
def client(watched):
    with browser_of(watched) as opened:
        yield opened


def by_set(page, metric):
    return {labels["queryset"]: float(value) for value, labels in figures(page, metric)}


def test_churn_and_clicks_are_those_of_status_and_views_and_never_called_flips(watched, refreshed, client):
    page, status = client.get(f"/rollouts/{refreshed.id}"), read_status(watched, refreshed.id)
    assert {row["queryset"] for row in status.churn} == {"asked", "logged", "clicked"}
    for hook, column in (("overlap", "overlap"), ("rbo", "rbo"), ("first_changed", "first_changed"),
                         ("churn_n", "n"), ("churn_k", "k")):  # fmt: skip
        assert by_set(page, hook) == {row["queryset"]: row[column] for row in status.churn}
    newest = view(watched, "churn_summary", rollout=refreshed.id, queryset="logged", slice="all")[-1]
    assert 0 < by_set(page, "overlap")["logged"] == newest["overlap"] < 1

    (clicks,) = status.clicks
    for hook, column in (("click_losses", "click_losses"), ("click_gains", "click_gains"), ("click_n", "n"),
                         ("click_loss_rate", "loss_rate"), ("click_gain_rate", "gain_rate")):  # fmt: skip
        assert by_set(page, hook) == {"clicked": clicks[column]}
    assert set(by_set(page, "negative_flips")) == {"asked"}
    for section in ("churn", "clicks"):
        shown = re.search(rf'<section data-live id="{section}".*?</section>', page.text, re.DOTALL).group()
        assert "flip" not in shown
        assert f">{section.capitalize()}</h2>" in shown


def test_the_overview_shows_churn_where_nobody_knows_what_is_right(watched, refreshed, client):
    page = client.get("/")
    assert by_set(page, "overlap") == {}
    assert set(by_set(page, "negative_flips")) == {"asked"}
    with watched.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE query_set SET relevance = 'none' WHERE relevance = 'label'")
    page = client.get("/")
    churn = read_status(watched, refreshed.id).churn
    assert by_set(page, "overlap") == {row["queryset"]: row["overlap"] for row in churn}
    assert by_set(page, "first_changed") == {row["queryset"]: row["first_changed"] for row in churn}
    assert "<dt>Flips</dt>" not in page.text
    assert figures(page, "negative_flips") == []


def test_each_chart_has_the_curve_of_its_own_query_set(watched, refreshed, client):
    """The simulated order is of the certificate's query set; with a second labelled set it must stand beside that one alone."""
    with watched.engine.begin() as connection:
        flip_queries.insert_curve_points(
            connection,
            refreshed.id,
            [("recall_at_1", "random", 0.0, 0.5), ("recall_at_1", "random", 1.0, 0.5)],
        )
        connection.exec_driver_sql(
            """INSERT INTO query_set (gallery_id, name, relevance, source, modality)
               SELECT gallery_id, 'second', relevance, source, modality FROM query_set WHERE name = 'asked';
               INSERT INTO evaluation (rollout_id, query_set_id, slice, seq, k, items, point, both_right, negative_flips,
                                       positive_flips, both_wrong, n, previous_negative_flips,
                                       previous_positive_flips)
               SELECT rollout_id, (SELECT id FROM query_set WHERE name = 'second'), slice, seq, k, items, point,
                      0, 0, 0, n, n, 0, 0
               FROM evaluation"""
        )
    page = html.unescape(client.get(f"/rollouts/{refreshed.id}").text)
    charts = dict(
        re.findall(r'<figcaption id="recall-\d+-title">(.*?)</figcaption>(.*?)</figure>', page, re.DOTALL)
    )
    assert {"Recall at 1 on asked", "Recall at 1 on second"} <= set(charts)
    has_random = {title for title, drawn in charts.items() if "simulated, order random" in drawn}
    assert has_random == {"Recall at 1 on asked"}
    asked, second = (
        [
            row["value"]
            for row in view(
                watched, "refresh_curve", against_order="measured", metric="recall_at_1", queryset=name
            )
        ]
        for name in ("asked", "second")
    )
    assert set(second) == {0.0}
    assert min(asked) > 0
    assert f"Recall at 1 on asked: {asked[-1]:.3f} at" in charts["Recall at 1 on asked"]
    assert "Recall at 1 on second: 0.000 at" in charts["Recall at 1 on second"]
    simulated = view(watched, "refresh_curve", rollout=refreshed.id, against_order="random")
    assert {row["queryset"] for row in simulated} == {"asked"}


def test_the_page_names_the_revision_of_the_plan_and_what_re_ranks_it(watched, refreshed, client):
    path = f"/rollouts/{refreshed.id}"
    page = client.get(path)
    assert figures(page, "plan_revision") == [("0", {})]
    assert "order of the start" in page.text
    assert "never re-ranked by itself" in page.text
    with watched.engine.begin() as connection:
        connection.exec_driver_sql(
            f"""INSERT INTO plan_revision (rollout_id, no, file, measure, batches, items, committed_items, automatic, actor)
                VALUES ({refreshed.id}, 2, 'rows.2.u32', 'flips', 1, 2, 0, true, 'me');
                UPDATE rollout SET config = config || '{{"reorder": "flips"}}' WHERE id = {refreshed.id}"""
        )
    page = client.get(path)
    assert figures(page, "plan_revision") == [("2", {})]
    assert "order of the start" not in page.text
    assert "re-ranked by flips" in page.text
