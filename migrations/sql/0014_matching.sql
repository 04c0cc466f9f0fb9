-- Copy detection along a refresh: at which score 90 % of what is accepted is right, and who is no longer accepted.

-- One row a point of the coverage, of query sets whose relevance is known. The ranking is of every query's first answer. `old_…`: the
-- old system's. accepted, accepted_right, lost, gained: at old_threshold; null where the old system reaches no 90 %.
CREATE TABLE match_threshold (
    rollout_id         bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    query_set_id       bigint NOT NULL REFERENCES query_set ON DELETE CASCADE,
    seq                bigint NOT NULL,
    items              bigint NOT NULL,             -- items of the new model at that point
    n                  integer NOT NULL,            -- queries ranked
    true_pairs         integer NOT NULL CHECK (true_pairs > 0),
    micro_ap           double precision NOT NULL CHECK (micro_ap BETWEEN 0 AND 1.000001),
    recall_at_p90      double precision,
    threshold          double precision,
    old_micro_ap       double precision NOT NULL,
    old_recall_at_p90  double precision,
    old_threshold      double precision,
    accepted           integer,
    accepted_right     integer,
    lost               integer,                     -- matching flips: accepted and right in the old system, not so now
    gained             integer,
    at                 timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, query_set_id, seq),
    CHECK ((threshold IS NULL) = (recall_at_p90 IS NULL)),
    CHECK (num_nulls(old_threshold, accepted, accepted_right, lost, gained) IN (0, 5)),
    CHECK (accepted_right <= accepted AND accepted <= n)
);

CREATE VIEW reporting.match_threshold AS
SELECT t.rollout_id AS rollout, g.name AS gallery, s.name AS queryset, t.seq,
       t.items::double precision / nullif(r.n_items, 0) AS coverage, t.n, t.true_pairs,
       t.micro_ap, t.recall_at_p90, t.threshold, t.old_micro_ap, t.old_recall_at_p90, t.old_threshold,
       t.accepted, t.accepted_right, t.lost, t.gained, t.at
FROM match_threshold t
JOIN rollout r ON r.id = t.rollout_id
JOIN query_set s ON s.id = t.query_set_id
JOIN gallery g ON g.id = r.gallery_id;
