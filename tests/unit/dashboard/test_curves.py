"""The charts of a rollout, from rows as the ledger gives them."""

from __future__ import annotations

import numpy as np

from orchestrator.dashboard.curves import (
    cause_charts,
    in_order,
    open_by_cause,
    recall_charts,
    threshold_charts,
)


def point(seq, coverage, recall=0.8, queryset="asked", k=1, old=0.75):
    return {
        "queryset": queryset, "k": k, "seq": seq, "coverage": coverage, "recall": recall, "old_recall": old,
        "negative_flips": 0, "positive_flips": 0, "n": 100,
    }  # fmt: skip


def test_open_flips_are_those_opened_before_and_not_healed_yet():
    """Against a slow count over each flip's life."""
    rng = np.random.default_rng(0)
    seqs = [3, 10, 11, 20, 31]
    lives = []
    for _ in range(200):
        opened = int(rng.integers(3, 32))
        healed = int(rng.integers(opened + 1, 45)) if rng.random() < 0.7 else None
        lives.append((str(rng.choice(["mixed_stage", "model"])), opened, healed))
    changes = {}
    for cause, opened, healed in lives:
        for seq, change in ((opened, 1), (healed, -1)):
            if seq is not None:
                # what width_bucket(seq - 1, seqs) gives: how many of seqs are below seq
                place = sum(each < seq for each in seqs)
                changes[cause, place] = changes.get((cause, place), 0) + change
    rows = [{"cause": c, "place": p, "change": n} for (c, p), n in changes.items()]
    found = open_by_cause([point(seq, seq / 31) for seq in seqs], rows, seqs)
    for cause in ("mixed_stage", "model"):
        expected = [
            (seq / 31, sum(c == cause and o <= seq and (h is None or h > seq) for c, o, h in lives))
            for seq in seqs
        ]
        assert found[cause] == expected


def test_there_is_a_chart_for_each_query_set_and_k():
    rows = [point(1, 0.0), point(2, 0.5, 0.9), point(1, 0.0, k=10), point(1, 0.0, queryset="other")]
    charts = recall_charts(rows, [], "entropy")
    assert [chart.title for chart in charts] == [
        "Recall at 1 on asked",
        "Recall at 10 on asked",
        "Recall at 1 on other",
    ]
    assert [line.name for line in charts[0].lines] == ["measured, order entropy", "old system"]
    assert "0.900 at 50.0" in charts[0].summary
    assert [chart.title for chart in cause_charts(rows, [])] == [
        "Open negative flips on asked", "Open negative flips on other",
    ]  # fmt: skip


def test_open_flips_of_a_recoding_are_the_codecs():
    rows = [point(1, 0.0), point(2, 1.0)]
    changes = [{"queryset": "asked", "cause": "quantisation", "place": 1, "change": 3}]
    (chart,) = cause_charts(rows, changes)
    assert [line.name for line in chart.lines] == ["mixed stage", "the codec"]
    assert "0 of a mixed stage" in chart.summary
    assert "3 of the codec." in chart.summary


def test_a_random_order_is_drawn_where_one_was_simulated():
    random = [
        {"metric": "recall_at_1", "against_order": "random", "coverage": c, "value": v}
        for c, v in ((1, 1), (0, 0.8))
    ]
    other = [{"metric": "recall_at_10", "against_order": "random", "coverage": 0, "value": 0.1}]
    (chart,) = recall_charts([point(1, 0.0)], random + other, "entropy")
    assert [(line.name, line.style) for line in chart.lines] == [
        ("measured, order entropy", "measured"), ("simulated, order random", "random"), ("old system", "old"),
    ]  # fmt: skip
    assert chart.table[-1][1][1] == 0.8


def test_a_simulated_curve_stands_beside_the_query_set_that_it_is_of():
    """With several query sets, one that does not say of which it is stands beside none."""
    rows = [point(1, 0.0), point(1, 0.0, queryset="other")]
    curve = {"metric": "recall_at_1", "against_order": "random", "coverage": 0, "value": 0.8}
    for known, drawn in ((curve, [False, False]), ({**curve, "queryset": "other"}, [False, True])):
        charts = recall_charts(rows, [known], "entropy")
        assert [any(line.style == "random" for line in chart.lines) for chart in charts] == drawn


def test_a_query_set_on_which_nothing_counts_has_no_chart():
    assert recall_charts([point(1, 0.0, recall=None)], [], "entropy") == []
    assert recall_charts([point(1, None)], [], "entropy") == []
    assert cause_charts([point(1, None)], []) == []


def test_open_flips_stand_behind_the_first_recall():
    rows = [point(1, 0.0), point(1, 0.0, k=10), point(1, 0.0, queryset="other")]
    recall, causes = recall_charts(rows, [], "entropy"), cause_charts(rows, [])
    shown = in_order(recall, causes)
    assert [chart.title for _, chart in shown] == [
        "Recall at 1 on asked", "Open negative flips on asked", "Open negative flips on other", "Recall at 10 on asked",
        "Recall at 1 on other",
    ]  # fmt: skip
    assert len({name for name, _ in shown}) == 5
    assert in_order([], []) == []


def cut(coverage, threshold, old=0.5, lost=3, queryset="asked"):
    counts = {"accepted": 9, "accepted_right": 8, "lost": lost, "gained": 1}
    return {
        "queryset": queryset, "coverage": coverage, "threshold": threshold, "old_threshold": old, "old_recall_at_p90": 0.4,
        "scores": "served",
        "recall_at_p90": None if threshold is None else 0.25, **(counts if old is not None else dict.fromkeys(counts)),
    }  # fmt: skip


def test_thresholds_are_drawn_where_they_are_reached_and_matching_flips_where_the_old_system_had_one():
    threshold, flips = threshold_charts([cut(0.0, -0.1), cut(0.5, None, lost=5), cut(1.0, 1.7, lost=2)])
    assert [line.name for line in threshold.lines] == ["threshold", "old system"]
    assert float(threshold.y_ticks[0].text) <= -0.1, "scores less a background may be negative"
    assert float(threshold.y_ticks[-1].text) >= 1.7
    assert threshold.table[-1] == (1, (1.7, 0.5))
    assert "at least 1.700" in threshold.summary
    assert flips.table[0][1] == (3.0, 1.0)
    assert "2 right answers are no longer accepted, 1 are only now; 8 of 9" in flips.summary
    (only,) = threshold_charts([cut(1.0, 0.3, old=None)])
    assert "it reached no such precision" in only.summary
    assert threshold_charts([cut(1.0, None, old=None)]) == []
