"""Row 3: every dashboard view, read as dashboards read it, on a ledger of a million batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from bench.result import Row, document, median, quartiles, seconds
from bench.scratch import register_network, scratch_context
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries, rollouts
from orchestrator.ledger.queries.reporting import VIEWS, read_view
from orchestrator.settings import Settings

BATCHES, QUICK_BATCHES = 1_000_000, 2_000
LIMIT_MS = 5.0
QUERIES = 1_000
FILL = """
INSERT INTO item (gallery_id, row, key, uri, label)
    SELECT {gallery}, n, 'item-' || n, 'file:/nowhere/' || n, 'class-' || n % 1000 FROM generate_series(0, {n} - 1) n;
INSERT INTO query_set (gallery_id, name, relevance, source, modality) VALUES ({gallery}, 'asked', 'label', 'bench', 'image');
INSERT INTO query (query_set_id, no, key, uri, label)
    SELECT s.id, n, 'query-' || n, 'file:/nowhere/q' || n, 'class-' || n
    FROM query_set s, generate_series(0, {queries} - 1) n WHERE s.gallery_id = {gallery};
INSERT INTO plan_chunk (rollout_id, no, ranks)
    SELECT {rollout}, chunk, (SELECT string_agg(decode(substr(h, 7, 2) || substr(h, 5, 2) || substr(h, 3, 2) || substr(h, 1, 2),
                                                       'hex'), ''::bytea ORDER BY r)
                              FROM (SELECT r, lpad(to_hex(r), 8, '0') AS h
                                    FROM generate_series(chunk * 65536, least({n}, (chunk + 1) * 65536) - 1) r) ranks)
    FROM generate_series(0, ({n} - 1) / 65536) chunk;
INSERT INTO batch (rollout_id, first_rank, n, band, state, seq, fence, committed_at, lease_owner, lease_until)
    SELECT {rollout}, n, 1, CASE WHEN n < {n} / 10 THEN 0 ELSE 1 + n * 3 / {n} END,
           CASE WHEN n < {done} THEN 'committed' WHEN n < {done} + 16 THEN 'leased' ELSE 'pending' END,
           CASE WHEN n < {done} THEN n + 2 END, 1, CASE WHEN n < {done} THEN clock_timestamp() END,
           CASE WHEN n BETWEEN {done} AND {done} + 15 THEN 'worker-1' END,
           CASE WHEN n BETWEEN {done} AND {done} + 15 THEN clock_timestamp() + interval '1 hour' END
    FROM generate_series(0, {n} - 1) n;
INSERT INTO band_progress (rollout_id, band, batches, committed)
    SELECT rollout_id, band, count(*), count(*) FILTER (WHERE state = 'committed') FROM batch
    WHERE rollout_id = {rollout} GROUP BY 1, 2 ON CONFLICT (rollout_id, band) DO UPDATE
    SET batches = excluded.batches, committed = excluded.committed;
INSERT INTO progress (rollout_id, at, items, batches)
    SELECT {rollout}, clock_timestamp() - n * interval '10 seconds', 100, 100 FROM generate_series(0, {done} / 100) n;
UPDATE rollout SET n_batches = {n}, committed_batches = {done}, committed_items = {done}, state = 'backfilling',
    deployed_at = clock_timestamp(), last_progress_at = clock_timestamp() WHERE id = {rollout};
INSERT INTO serving (gallery_id, generation, model_id, rollout_id, valid_from, actor, reason)
    SELECT {gallery}, 1, to_model_id, id, clock_timestamp(), 'bench', 'bench' FROM rollout WHERE id = {rollout};
INSERT INTO evaluation (rollout_id, query_set_id, seq, items, k, slice, n, both_right, negative_flips, positive_flips, both_wrong,
                        previous_negative_flips, previous_positive_flips, point)
    SELECT {rollout}, s.id, n + 2, n, k, slice, {queries}, {queries} - 60, 10, 20, 30, 0, 0, n % ({n} / 200) = 0
    FROM query_set s, generate_series(0, {done} - 1) n, (VALUES (1, 'all'), (10, 'all'), (1, 'tenant=a')) AS each (k, slice)
    WHERE s.gallery_id = {gallery} AND (slice = 'all' OR n % 50 = 0);
INSERT INTO downstream_module (name, model_id, architecture, metric, dim, digest, fingerprint, uri, files, manifest)
    SELECT 'bench', to_model_id, 'bench', 'bench', 1, 'bench', 'bench', '/nowhere', '{{}}', '{{}}'
    FROM rollout WHERE id = {rollout};
INSERT INTO downstream_certificate (module_id, model_id, fingerprint, source, n, accepted_loss, verdict, reason, measured)
    SELECT d.id, d.model_id, 'bench', 'bench', 0, 0, 'inconclusive', 'bench', '{{}}'
    FROM downstream_module d, generate_series(1, 200);
INSERT INTO match_threshold (rollout_id, query_set_id, seq, items, n, true_pairs, micro_ap, recall_at_p90, threshold,
                             old_micro_ap)
    SELECT {rollout}, s.id, n + 2, n, {queries}, {queries}, 0.9, 0.8, 0.7, 0.9
    FROM query_set s, generate_series(0, {done} - 1) n WHERE s.gallery_id = {gallery} AND n % ({n} / 200) = 0;
INSERT INTO churn (rollout_id, query_set_id, seq, items, slice, point, n, shared, p)
    SELECT {rollout}, s.id, n + 2, n, slice, n % ({n} / 200) = 0, {queries},
           ARRAY(SELECT {queries} * d * 9 / 10 FROM generate_series(1, 10) d)::bigint[], 0.9
    FROM query_set s, generate_series(0, {done} - 1) n, (VALUES ('all'), ('tenant=a')) AS each (slice)
    WHERE s.gallery_id = {gallery} AND (slice = 'all' OR n % 50 = 0);
INSERT INTO flip (rollout_id, query_set_id, query_no, kind, reference, k, opened_seq, healed_seq, old_row, new_row, old_score,
                  new_score, cause)
    SELECT {rollout}, s.id, n % {queries}, CASE n % 2 WHEN 0 THEN 'negative' ELSE 'positive' END, reference, 1, n + 2,
           CASE WHEN n < {done} - {queries} THEN n + 2 + {queries} END, n % 1000, n % 999, 0.9, 0.8,
           CASE n % 2 WHEN 0 THEN 'mixed_stage' END
    FROM query_set s, generate_series(0, {done} - 1) n, (VALUES ('old_system'), ('previous_stage')) AS each (reference)
    WHERE s.gallery_id = {gallery} AND n % 5 = 0;
INSERT INTO click_evaluation SELECT * FROM evaluation;
INSERT INTO click_change SELECT * FROM flip;
INSERT INTO traffic_change (rollout_id, revision, canary, shadow, actor)
    SELECT {rollout}, n, n, 0.05, 'bench' FROM generate_series(1, 99) n;
INSERT INTO shadow_count (rollout_id, stage, n, shared, labelled, both_wrong)
    SELECT {rollout}, n, {n}, ARRAY(SELECT {n}::bigint * d * 9 / 10 FROM generate_series(1, 10) d), {n}, {n}
    FROM generate_series(0, 20) n;
INSERT INTO shadow_sample (rollout_id, at, served, seq, coverage, old_rows, old_scores, new_rows, new_scores)
    SELECT {rollout}, clock_timestamp(), 'old', n, 0.5, '{{1,2,3}}', '{{0.9,0.8,0.7}}', '{{1,3,2}}', '{{0.9,0.8,0.7}}'
    FROM generate_series(1, 200) n;
INSERT INTO gate_decision (rollout_id, gate, result, value, "limit", sample_n, effect, query_set, seq)
    SELECT {rollout}, 'flips', CASE n % 2 WHEN 0 THEN 'pass' ELSE 'fail' END, 0.01, 0.05, {queries}, 'none', 'asked', n + 2
    FROM generate_series(0, 999) n;
INSERT INTO quarantine (rollout_id, row, reason, message)
    SELECT {rollout}, n, 'corrupt', 'it cannot be decoded' FROM generate_series(0, least({n} / 100, 9999)) n;
INSERT INTO curve_point (rollout_id, metric, order_name, coverage, value)
    SELECT {rollout}, 'recall_at_1', order_name, n / 21.0, 0.7
    FROM generate_series(0, 21) n, (VALUES ('entropy'), ('random')) AS each (order_name);
INSERT INTO worker (id, host, pid, device, version, expected_interval_s)
    SELECT 'worker-' || n, 'host', n, 'cpu', '0', 3600 FROM generate_series(1, 32) n;
INSERT INTO audit (actor, action, target)
    SELECT 'somebody', 'rollout.set', (n % 100)::text FROM generate_series(1, {n} / 10) n;
"""


def run(
    settings: Settings | None = None,
    *,
    repeats: int = 25,
    quick: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Medians of `repeats` reads on one connection, each view as the command line, the dashboard and Grafana read it.

    Args:
        quick: a small ledger: to see that it works, not to quote.
        say: told what is measured next.
    """
    tell = say or (lambda text: None)
    batches = QUICK_BATCHES if quick else BATCHES
    with scratch_context(settings) as context:
        tell(f"row 3: a ledger of {batches:,} batches")
        rollout = fill(context, batches)
        tell("row 3: the views")
        with transaction(context.engine) as connection:
            rows = [
                _row(connection, view, filters, batches, repeats, quick=quick)
                for view, filters in reads(rollout).items()
            ]
    return document("views", rows, repeats=repeats, quick=quick, batches=batches)


def reads(rollout: int) -> Mapping[str, Mapping[str, Any]]:
    """View -> how it is read: the newest 100 rows, or those of one rollout, one item, one set."""
    asked = {"rollout": rollout, "queryset": "asked", "k": 1, "slice": "all"}
    return {
        "rollout_status": {"id": rollout},
        "queue_status": {"rollout": rollout},
        "worker_health": {"live": True},
        "errors": {"rollout": rollout, "limit": 100},
        "embedding_versions": {"gallery": "bench", "item": "item-17"},
        "coverage_by_model": {"gallery": "bench"},
        "flip_summary": {**asked, "newest": True},
        "flip_items": {"rollout": rollout, "queryset": "asked", "reference": "old_system", "limit": 100},
        "churn_summary": {"rollout": rollout, "queryset": "asked", "slice": "all", "newest": True},
        "click_summary": {**asked, "newest": True},
        "click_items": {"rollout": rollout, "queryset": "asked", "reference": "old_system", "limit": 100},
        "match_threshold": {"rollout": rollout},
        "refresh_curve": {"rollout": rollout, "limit": 10_000},
        "gate_decisions": {"rollout": rollout, "newest": True},
        "traffic": {"rollout": rollout, "newest": True},
        "shadow": {"rollout": rollout},
        "shadow_samples": {"rollout": rollout, "limit": 200},
        "downstream_modules": {"model": "bench"},
        "downstream_certificates": {"module": "bench", "newest": True},
        "serving_history": {"gallery": "bench"},
        "audit": {"target": str(rollout), "limit": 100},
    }


def fill(context: Context, n: int) -> int:
    """A gallery of `n` items and a rollout of as many batches, half of them committed and evaluated; the rollout."""
    model = register_network(context, "bench", "convnet", {}, 0)
    with transaction(context.engine) as connection:
        gallery = galleries.insert_gallery(connection, name="bench", modality="image", source="bench")
        assert gallery is not None
        rollout = rollouts.insert_rollout(
            connection, gallery_id=gallery, kind="initial", from_model_id=None, to_model_id=model.id, adapter_id=None,
            strategy="reembed", certificate_id=None, order_name="row", config={}, batch_size=1, n_items=n,
            extent_uri="/nowhere", actor="bench",
        )  # fmt: skip
        assert rollout is not None
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql(f"UPDATE gallery SET n_items = {n} WHERE id = {gallery}")
        values = {"gallery": gallery, "rollout": rollout, "n": n, "done": n // 2, "queries": QUERIES}
        for statement in FILL.format(**values).split(";\n")[:-1]:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    with context.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    return rollout


def _row(
    connection: Connection, view: str, filters: Mapping[str, Any], batches: int, repeats: int, *, quick: bool
) -> Row:
    found = read_view(connection, view, **filters)
    assert found, f"{view} is empty: nothing would be measured"
    taken = [1000 * seconds(lambda: read_view(connection, view, **filters)) for _ in range(repeats)]
    value = median(taken)
    return Row(
        3,
        f"{view}, {len(found):,} rows read, {batches:,} batches: median of {repeats}, {quartiles(taken)} ms",
        value,
        "ms",
        "-",
        None,
        f"<= {LIMIT_MS:g} ms",
        None if quick else value <= LIMIT_MS,
    )


assert set(reads(0)) == set(VIEWS), "a view is not measured"
