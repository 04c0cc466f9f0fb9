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

-- What local matching says of a flipped query's two first answers; matches are null where a picture could not be read.
CREATE TABLE flip_verification (
    rollout_id    bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    query_set_id  bigint NOT NULL,
    query_no      integer NOT NULL,
    old_row       bigint NOT NULL,
    new_row       bigint NOT NULL,
    old_matches   integer,
    new_matches   integer,
    old_verified  boolean NOT NULL,
    new_verified  boolean NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, query_set_id, query_no, old_row, new_row),
    FOREIGN KEY (query_set_id, query_no) REFERENCES query ON DELETE CASCADE,
    CHECK (NOT (old_verified AND old_matches IS NULL) AND NOT (new_verified AND new_matches IS NULL))
);

-- The same rows and columns as before, and behind them what was verified; null where it was not compared yet.
CREATE OR REPLACE VIEW reporting.flip_items AS
SELECT f.rollout_id AS rollout, s.name AS queryset, q.key AS query, f.kind, f.reference,
       -- Looked up for the rows that are read, not for all that could be.
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.old_row) AS old_item,
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.new_row) AS new_item,
       f.old_score, f.new_score, f.cause, f.opened_seq, f.healed_seq, f.opened_at, f.healed_at, f.k, q.attributes,
       v.old_verified, v.new_verified, v.old_matches, v.new_matches
FROM flip f
JOIN query_set s ON s.id = f.query_set_id
JOIN query q ON q.query_set_id = f.query_set_id AND q.no = f.query_no
LEFT JOIN flip_verification v ON v.rollout_id = f.rollout_id AND v.query_set_id = f.query_set_id AND v.query_no = f.query_no
     AND v.old_row = f.old_row AND v.new_row = f.new_row;
