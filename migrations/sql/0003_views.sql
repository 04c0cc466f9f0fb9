-- The contract with dashboards. Dropped and created again by migrations; columns are pinned by a test.

CREATE SCHEMA reporting;

CREATE VIEW reporting.rollout_status AS
WITH leased AS (
    SELECT rollout_id, sum(n) AS items FROM batch WHERE state = 'leased' GROUP BY rollout_id
), recent AS (
    SELECT rollout_id, sum(items) AS items,
           greatest(extract(epoch FROM clock_timestamp() - min(at)), 1.0) AS seconds
    FROM progress WHERE at > clock_timestamp() - interval '60 seconds' GROUP BY rollout_id
), numbers AS (
    SELECT r.*, coalesce(l.items, 0) AS leased_items,
           r.n_items - r.committed_items - r.quarantined_items AS open_items,
           recent.items / recent.seconds AS rate
    FROM rollout r LEFT JOIN leased l ON l.rollout_id = r.id LEFT JOIN recent ON recent.rollout_id = r.id
)
SELECT n.id, g.name AS gallery, n.kind, source.name AS from_model, target.name AS to_model, adapter.name AS adapter,
       n.state,
       CASE WHEN n.state IN ('deployed', 'backfilling') AND n.n_batches = 0 THEN 'planning'
            WHEN n.state = 'paused' AND n.leased_items > 0 THEN 'pausing'
            WHEN n.state = 'backfilling' AND n.throttle_reason IS NOT NULL THEN 'throttled'
            WHEN (n.state = 'backfilling' OR n.state = 'finalized' AND n.open_items > 0) AND n.leased_items = 0 AND NOT EXISTS (
                SELECT 1 FROM worker w WHERE w.stopped_at IS NULL
                  AND w.last_heartbeat > clock_timestamp() - 3 * w.expected_interval_s * interval '1 second')
            THEN 'no_worker' END AS sub_state,
       n.reason, n.n_items AS total, n.open_items - n.leased_items AS pending, n.leased_items AS leased,
       n.committed_items AS committed, n.quarantined_items AS quarantined,
       n.rate::double precision AS rate_per_s,
       CASE WHEN n.open_items = 0 THEN 0 WHEN n.rate > 0 THEN (n.open_items / n.rate)::double precision END AS eta_s,
       CASE WHEN n.n_items = 0 THEN NULL ELSE n.committed_items::double precision / n.n_items END AS coverage,
       coalesce(n.deployed_at, n.created_at) AS started_at, n.last_progress_at,
       n.paused_s + CASE WHEN n.state = 'paused'
           THEN extract(epoch FROM clock_timestamp() - n.paused_at)::double precision ELSE 0 END AS paused_s,
       n.actor, n.throttle_reason, n.throttle_value, n.throttle_limit
FROM numbers n
JOIN gallery g ON g.id = n.gallery_id
JOIN model target ON target.id = n.to_model_id
LEFT JOIN model source ON source.id = n.from_model_id
LEFT JOIN adapter ON adapter.id = n.adapter_id;

CREATE VIEW reporting.queue_status AS
WITH leased AS (
    SELECT rollout_id, band, count(*) AS batches FROM batch WHERE state = 'leased' GROUP BY rollout_id, band
), due AS (
    SELECT id AS rollout_id, EXISTS (SELECT 1 FROM batch b WHERE b.rollout_id = r.id AND b.state = 'pending'
                                     AND (b.available_at IS NULL OR b.available_at <= clock_timestamp())) AS now
    FROM rollout r WHERE r.state = 'backfilling'
)
SELECT s.id AS rollout, p.band,
       CASE WHEN s.state = 'paused' THEN 'parked'
            WHEN s.sub_state = 'no_worker' THEN 'no_worker'
            WHEN s.state <> 'backfilling' THEN 'idle'
            WHEN s.sub_state = 'throttled' THEN 'throttled'
            WHEN s.leased = 0 AND NOT due.now THEN 'backoff'
            ELSE 'active' END AS queue_state,
       p.batches - p.committed - coalesce(l.batches, 0) AS depth,
       coalesce(l.batches, 0) AS leased,
       CASE WHEN p.batches > p.committed
            THEN extract(epoch FROM clock_timestamp() - coalesce(s.last_progress_at, s.started_at))::double precision
       END AS oldest_age_s
FROM reporting.rollout_status s
JOIN band_progress p ON p.rollout_id = s.id
LEFT JOIN leased l ON l.rollout_id = p.rollout_id AND l.band = p.band
LEFT JOIN due ON due.rollout_id = s.id;

CREATE VIEW reporting.worker_health AS
SELECT id AS worker, host, pid, device, version, last_heartbeat, expected_interval_s,
       stopped_at IS NULL AND last_heartbeat > clock_timestamp() - 3 * expected_interval_s * interval '1 second' AS live,
       success_count, error_count, last_error
FROM worker;

CREATE VIEW reporting.errors AS
SELECT r.id AS rollout, g.name AS gallery, i.key AS item, q.attempts AS attempt, q.reason AS class, 'item' AS type,
       q.message, q.first_seen, q.last_seen, 1::bigint AS count
FROM quarantine q
JOIN rollout r ON r.id = q.rollout_id
JOIN gallery g ON g.id = r.gallery_id
JOIN item i ON i.gallery_id = r.gallery_id AND i.row = q.row
UNION ALL
SELECT b.rollout_id, g.name, NULL, b.attempt, 'batch', 'batch', b.error, NULL, NULL, b.attempt::bigint
FROM batch b JOIN rollout r ON r.id = b.rollout_id JOIN gallery g ON g.id = r.gallery_id
WHERE b.state <> 'committed' AND b.error IS NOT NULL
UNION ALL
SELECT NULL, g.name, j.key, NULL, 'rejected', 'import', j.reason, j.at, j.at, 1
FROM rejected j JOIN gallery g ON g.id = j.gallery_id;

CREATE VIEW reporting.embedding_versions AS
SELECT g.name AS gallery, i.key AS item, m.name AS model, a.name AS adapter, v.rollout_id AS rollout,
       v.first_rank AS batch, v.uncertainty, v.committed_at
FROM gallery g
JOIN item i ON i.gallery_id = g.id AND i.deleted_at IS NULL
LEFT JOIN LATERAL embedding_version(i.gallery_id, i.row) v ON true
LEFT JOIN model m ON m.id = v.model_id
LEFT JOIN adapter a ON a.id = v.adapter_id;

-- A finished rollout holds what newer ones have not taken; an unfinished one what it committed less what was replaced.
CREATE VIEW reporting.coverage_by_model AS
WITH held AS (
    SELECT r.gallery_id, r.to_model_id, r.id, r.state IN ('finalized', 'finalizable') AS finished, g.name,
           g.n_items - g.n_deleted AS live,
           r.committed_items - coalesce((SELECT sum(items) FROM replaced p JOIN rollout n ON n.id = p.rollout_id
               WHERE p.older_id = r.id AND n.state IN ('deployed', 'backfilling', 'paused', 'finalizable', 'finalized', 'superseded')
           ), 0) AS items
    FROM rollout r JOIN gallery g ON g.id = r.gallery_id
    WHERE r.state IN ('deployed', 'backfilling', 'paused', 'finalizable', 'finalized', 'superseded')
      AND r.reclaimed_at IS NULL
), covered AS (
    SELECT h.*, CASE WHEN h.finished OR newer.items IS NOT NULL THEN least(h.items, h.live - coalesce(newer.items, 0))
                     ELSE least(h.items, h.live) END AS own
    FROM held h LEFT JOIN LATERAL (SELECT sum(n.items) AS items FROM held n WHERE n.gallery_id = h.gallery_id AND n.id > h.id)
         AS newer ON true
)
SELECT c.name AS gallery, m.name AS model, sum(c.own)::bigint AS items,
       (sum(c.own) / nullif(c.live, 0))::double precision AS ratio
FROM covered c JOIN model m ON m.id = c.to_model_id
WHERE c.own > 0 GROUP BY c.name, m.name, c.live;

CREATE VIEW reporting.flip_summary AS
SELECT e.rollout_id AS rollout, g.name AS gallery, s.name AS queryset, 'all'::text AS slice, e.seq,
       e.items::double precision / nullif(r.n_items, 0) AS coverage, e.k,
       e.both_right, e.negative_flips, e.positive_flips, e.both_wrong, e.n,
       e.negative_flips::double precision / nullif(e.n, 0) AS nfr, e.positive_flips::double precision / nullif(e.n, 0) AS pfr,
       -- Wilson's interval at 95 % for nfr
       CASE WHEN e.n > 0 THEN (p.p + 1.9208 / e.n - 1.96 * sqrt(p.p * (1 - p.p) / e.n + 0.9604 / (e.n::double precision ^ 2)))
            / (1 + 3.8416 / e.n) END AS ci_low,
       CASE WHEN e.n > 0 THEN (p.p + 1.9208 / e.n + 1.96 * sqrt(p.p * (1 - p.p) / e.n + 0.9604 / (e.n::double precision ^ 2)))
            / (1 + 3.8416 / e.n) END AS ci_high,
       e.previous_negative_flips, e.previous_positive_flips, e.at
FROM evaluation e
JOIN rollout r ON r.id = e.rollout_id
JOIN query_set s ON s.id = e.query_set_id
JOIN gallery g ON g.id = r.gallery_id
CROSS JOIN LATERAL (SELECT e.negative_flips::double precision / nullif(e.n, 0) AS p) p;

CREATE VIEW reporting.flip_items AS
SELECT f.rollout_id AS rollout, s.name AS queryset, q.key AS query, f.kind, f.reference,
       old_item.key AS old_item, new_item.key AS new_item, f.old_score, f.new_score,
       NULL::text AS cause, f.opened_seq, f.healed_seq, f.opened_at, f.healed_at
FROM flip f
JOIN query_set s ON s.id = f.query_set_id
JOIN query q ON q.query_set_id = f.query_set_id AND q.no = f.query_no
LEFT JOIN item old_item ON old_item.gallery_id = s.gallery_id AND old_item.row = f.old_row
LEFT JOIN item new_item ON new_item.gallery_id = s.gallery_id AND new_item.row = f.new_row;

CREATE VIEW reporting.refresh_curve AS
SELECT rollout_id AS rollout, coverage, metric, value, order_name AS against_order FROM curve_point
UNION ALL
SELECT e.rollout_id, e.items::double precision / nullif(r.n_items, 0), 'recall_at_' || e.k,
       (e.both_right + e.positive_flips)::double precision / nullif(e.n, 0), 'measured'
FROM evaluation e JOIN rollout r ON r.id = e.rollout_id;

CREATE VIEW reporting.gate_decisions AS
SELECT rollout_id AS rollout, gate, result, value, "limit", sample_n, dry_run, decided_at, effect FROM gate_decision;

CREATE VIEW reporting.serving_history AS
SELECT g.name AS gallery, m.name AS model, s.rollout_id AS rollout, s.valid_from, s.valid_to, s.actor, s.reason
FROM serving s JOIN gallery g ON g.id = s.gallery_id JOIN model m ON m.id = s.model_id;

CREATE VIEW reporting.audit AS
SELECT at, actor, action, target, before, after FROM hotrefresh.audit;
