-- Churn against the old system, for query sets without relevance too; clicks as weak relevance: counted like flips, never called so.

ALTER TABLE query_set
    DROP CONSTRAINT query_set_relevance_check,
    ADD CONSTRAINT query_set_relevance_check CHECK (relevance IN ('label', 'pairs', 'clicks', 'none'));

-- Whole numbers: the mean overlap at every depth and the mean rank-biased overlap for any p follow from them exactly.
CREATE TABLE churn (
    rollout_id    bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    query_set_id  bigint NOT NULL REFERENCES query_set ON DELETE CASCADE,
    seq           bigint NOT NULL,
    items         bigint NOT NULL,                 -- items of the new model at that point
    slice         text NOT NULL,                   -- 'all', or attribute=value: written where its sums moved
    point         boolean NOT NULL,                -- as in evaluation: what a curve is drawn through
    n             integer NOT NULL,                -- queries compared
    shared        bigint[] NOT NULL CHECK (cardinality(shared) > 0),  -- at depth 1..k: rows in both lists, over the n queries
    p             double precision NOT NULL CHECK (p > 0 AND p < 1),
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, query_set_id, slice, seq)
);
CREATE INDEX churn_point ON churn (rollout_id) WHERE point;
CREATE INDEX churn_seq ON churn (rollout_id, seq);

-- Of the shape of evaluation and flip, so that the same code counts both; apart, so that nobody who reads flips takes these for such.
CREATE TABLE click_evaluation (
    LIKE evaluation INCLUDING ALL,
    FOREIGN KEY (rollout_id) REFERENCES rollout ON DELETE CASCADE,
    FOREIGN KEY (query_set_id) REFERENCES query_set ON DELETE CASCADE
);
CREATE TABLE click_change (
    LIKE flip INCLUDING ALL,
    FOREIGN KEY (rollout_id) REFERENCES rollout ON DELETE CASCADE,
    FOREIGN KEY (query_set_id, query_no) REFERENCES query ON DELETE CASCADE
);

-- Rank-biased overlap, extrapolated (Webber, Moffat and Zobel, 2010), as 1 less the weighted disagreement: 1 is exactly 1.
CREATE VIEW reporting.churn_summary AS
SELECT c.rollout_id AS rollout, g.name AS gallery, s.name AS queryset, s.relevance, c.slice, c.seq,
       c.items::double precision / nullif(r.n_items, 0) AS coverage, cardinality(c.shared) AS k, c.n,
       c.shared[cardinality(c.shared)] / nullif(c.n::double precision * cardinality(c.shared), 0) AS overlap,
       greatest(0, 1 - lost.lost / nullif(c.n, 0)) AS rbo, c.p,
       (c.n - c.shared[1])::double precision / nullif(c.n, 0) AS first_changed, c.point, c.at
FROM churn c
JOIN rollout r ON r.id = c.rollout_id
JOIN query_set s ON s.id = c.query_set_id
JOIN gallery g ON g.id = r.gallery_id
CROSS JOIN LATERAL (
    SELECT sum((c.n - shared / d::double precision) * c.p ^ d) * (1 - c.p) / c.p
           + (c.n - c.shared[cardinality(c.shared)] / cardinality(c.shared)::double precision) * c.p ^ cardinality(c.shared) AS lost
    FROM unnest(c.shared) WITH ORDINALITY AS depth (shared, d)) lost;

CREATE VIEW reporting.click_summary AS
SELECT e.rollout_id AS rollout, g.name AS gallery, s.name AS queryset, e.slice, e.seq,
       e.items::double precision / nullif(r.n_items, 0) AS coverage, e.k,
       e.both_right AS kept, e.negative_flips AS click_losses, e.positive_flips AS click_gains, e.both_wrong AS missed, e.n,
       e.negative_flips::double precision / nullif(e.n, 0) AS loss_rate, e.positive_flips::double precision / nullif(e.n, 0) AS gain_rate,
       -- Wilson's interval at 95 % for loss_rate
       CASE WHEN e.n > 0 THEN (p.p + 1.9208 / e.n - 1.96 * sqrt(p.p * (1 - p.p) / e.n + 0.9604 / (e.n::double precision ^ 2)))
            / (1 + 3.8416 / e.n) END AS ci_low,
       CASE WHEN e.n > 0 THEN (p.p + 1.9208 / e.n + 1.96 * sqrt(p.p * (1 - p.p) / e.n + 0.9604 / (e.n::double precision ^ 2)))
            / (1 + 3.8416 / e.n) END AS ci_high,
       e.previous_negative_flips AS previous_click_losses, e.previous_positive_flips AS previous_click_gains, e.at
FROM click_evaluation e
JOIN rollout r ON r.id = e.rollout_id
JOIN query_set s ON s.id = e.query_set_id
JOIN gallery g ON g.id = r.gallery_id
CROSS JOIN LATERAL (SELECT e.negative_flips::double precision / nullif(e.n, 0) AS p) p;

CREATE VIEW reporting.click_items AS
SELECT f.rollout_id AS rollout, s.name AS queryset, q.key AS query,
       CASE f.kind WHEN 'negative' THEN 'loss' ELSE 'gain' END AS kind, f.reference,
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.old_row) AS old_item,
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.new_row) AS new_item,
       f.old_score, f.new_score, f.cause, f.opened_seq, f.healed_seq, f.opened_at, f.healed_at, f.k, q.attributes
FROM click_change f
JOIN query_set s ON s.id = f.query_set_id
JOIN query q ON q.query_set_id = f.query_set_id AND q.no = f.query_no;

-- The same rows and columns as before. A gate's newest decision is looked up in an index: comparing each with all took their square.
CREATE OR REPLACE VIEW reporting.gate_decisions AS
SELECT rollout_id AS rollout, gate, result, value, "limit", sample_n, dry_run, decided_at, effect,
       query_set AS queryset, measure, slice, k, seq, reason, times, last_at,
       id = (SELECT n.id FROM gate_decision n WHERE n.rollout_id = d.rollout_id AND n.gate = d.gate
             AND n.query_set = d.query_set ORDER BY n.id DESC LIMIT 1) AS newest
FROM gate_decision d;
