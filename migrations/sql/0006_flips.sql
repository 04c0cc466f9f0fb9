-- Flips at any k, by slices of the queries, and by cause; what gates decided, and from what.

ALTER TABLE query ADD COLUMN attributes jsonb NOT NULL DEFAULT '{}';

ALTER TABLE evaluation
    ADD COLUMN slice text NOT NULL DEFAULT 'all',  -- 'all', or attribute=value: written where its counts moved
    ADD COLUMN point boolean NOT NULL DEFAULT false, -- one in each 200th part of the coverage: what a curve is drawn through
    DROP CONSTRAINT evaluation_pkey,
    ADD PRIMARY KEY (rollout_id, query_set_id, k, slice, seq);
UPDATE evaluation e SET point = true FROM (
    SELECT DISTINCT ON (e.rollout_id, e.query_set_id, e.items * 200 / greatest(r.n_items, 1)) e.rollout_id, e.query_set_id, e.seq
    FROM evaluation e JOIN rollout r ON r.id = e.rollout_id
    ORDER BY e.rollout_id, e.query_set_id, e.items * 200 / greatest(r.n_items, 1), e.seq) first
WHERE (e.rollout_id, e.query_set_id, e.seq) = (first.rollout_id, first.query_set_id, first.seq);
CREATE INDEX evaluation_point ON evaluation (rollout_id) WHERE point;
CREATE INDEX evaluation_seq ON evaluation (rollout_id, seq);

ALTER TABLE flip
    ADD COLUMN k integer NOT NULL DEFAULT 1,
    ADD COLUMN cause text CHECK (cause IN ('mixed_stage', 'model')),  -- of negative flips
    ADD CHECK (cause IS NULL OR kind = 'negative'),
    DROP CONSTRAINT flip_pkey,
    ADD PRIMARY KEY (rollout_id, query_set_id, query_no, reference, k, opened_seq);
DROP INDEX flip_open;
CREATE INDEX flip_open ON flip (rollout_id, query_set_id, reference, k) WHERE healed_seq IS NULL;
CREATE INDEX flip_seq ON flip (rollout_id, opened_seq);

-- What the views read of a long history, they read by these.
CREATE INDEX batch_failed ON batch (rollout_id) WHERE state <> 'committed' AND error IS NOT NULL;
CREATE INDEX audit_target ON audit (target, at);
CREATE INDEX audit_at ON audit (at);

-- One row as long as a gate's answer stays the same: its number is the newest one, `times` says how often it was given.
ALTER TABLE gate_decision
    ADD COLUMN query_set text NOT NULL DEFAULT '',
    ADD COLUMN measure text NOT NULL DEFAULT '',
    ADD COLUMN slice text NOT NULL DEFAULT 'all',
    ADD COLUMN k integer NOT NULL DEFAULT 1,
    ADD COLUMN seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN reason text NOT NULL DEFAULT '',
    ADD COLUMN error boolean NOT NULL DEFAULT false,
    ADD COLUMN times integer NOT NULL DEFAULT 1,
    ADD COLUMN last_at timestamptz NOT NULL DEFAULT clock_timestamp();
CREATE INDEX gate_newest ON gate_decision (rollout_id, gate, query_set, id DESC);

-- Columns stand where they stood, new ones behind: views are replaced in place, and keep their grants and what is built on them.
CREATE OR REPLACE VIEW reporting.flip_summary AS
SELECT e.rollout_id AS rollout, g.name AS gallery, s.name AS queryset, e.slice, e.seq,
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

CREATE OR REPLACE VIEW reporting.flip_items AS
SELECT f.rollout_id AS rollout, s.name AS queryset, q.key AS query, f.kind, f.reference,
       -- Looked up for the rows that are read, not for all that could be.
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.old_row) AS old_item,
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.new_row) AS new_item,
       f.old_score, f.new_score, f.cause, f.opened_seq, f.healed_seq, f.opened_at, f.healed_at, f.k, q.attributes
FROM flip f
JOIN query_set s ON s.id = f.query_set_id
JOIN query q ON q.query_set_id = f.query_set_id AND q.no = f.query_no;

CREATE OR REPLACE VIEW reporting.errors AS
SELECT r.id AS rollout, g.name AS gallery, (SELECT i.key FROM item i WHERE i.gallery_id = r.gallery_id AND i.row = q.row) AS item,
       q.attempts AS attempt, q.reason AS class, 'item' AS type, q.message, q.first_seen, q.last_seen, 1::bigint AS count
FROM quarantine q
JOIN rollout r ON r.id = q.rollout_id
JOIN gallery g ON g.id = r.gallery_id
UNION ALL
SELECT b.rollout_id, g.name, NULL, b.attempt, 'batch', 'batch', b.error, NULL, NULL, b.attempt::bigint
FROM batch b JOIN rollout r ON r.id = b.rollout_id JOIN gallery g ON g.id = r.gallery_id
WHERE b.state <> 'committed' AND b.error IS NOT NULL
UNION ALL
SELECT NULL, g.name, j.key, NULL, 'rejected', 'import', j.reason, j.at, j.at, 1
FROM rejected j JOIN gallery g ON g.id = j.gallery_id;

CREATE OR REPLACE VIEW reporting.refresh_curve AS
SELECT rollout_id AS rollout, coverage, metric, value, order_name AS against_order FROM curve_point
UNION ALL
SELECT e.rollout_id, e.items::double precision / nullif(r.n_items, 0), 'recall_at_' || e.k,
       (e.both_right + e.positive_flips)::double precision / nullif(e.n, 0), 'measured'
FROM evaluation e JOIN rollout r ON r.id = e.rollout_id WHERE e.point AND e.slice = 'all';

CREATE OR REPLACE VIEW reporting.gate_decisions AS
SELECT rollout_id AS rollout, gate, result, value, "limit", sample_n, dry_run, decided_at, effect,
       query_set AS queryset, measure, slice, k, seq, reason, times, last_at,
       NOT EXISTS (SELECT 1 FROM gate_decision n WHERE n.rollout_id = d.rollout_id AND n.gate = d.gate
                   AND n.query_set = d.query_set AND n.id > d.id) AS newest
FROM gate_decision d;
