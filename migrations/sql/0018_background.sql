-- Scores of copy detection less what a query scores with a background set: thresholds of both kinds.

-- The sets a gallery has had; the one that is not removed is used by what is evaluated from now on. Never changed, so that what was
-- measured with one stays measured with it. One row a set: its items answer nothing and are looked for by nobody.
CREATE TABLE background_set (
    id          bigserial PRIMARY KEY,
    gallery_id  bigint NOT NULL REFERENCES gallery ON DELETE CASCADE,
    source      text NOT NULL,
    uris        text[] NOT NULL,
    neighbour   integer NOT NULL CHECK (neighbour >= 1),       -- the level of a query is its score with the n-th nearest
    beta        double precision NOT NULL CHECK (beta >= 0 AND beta < 'infinity'),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at  timestamptz,
    CHECK (cardinality(uris) >= neighbour)
);
CREATE UNIQUE INDEX background_set_now ON background_set (gallery_id) WHERE removed_at IS NULL;

-- What was stored so far is of the scores that are served.
ALTER TABLE match_threshold
    ADD scores         text NOT NULL DEFAULT 'served' CHECK (scores IN ('served', 'adjusted')),
    ADD background_id  bigint REFERENCES background_set,
    ADD background_n   integer,                                -- items of it that every version could read
    ADD CHECK (num_nulls(background_id, background_n) = CASE scores WHEN 'served' THEN 2 ELSE 0 END),
    DROP CONSTRAINT match_threshold_pkey,
    ADD PRIMARY KEY (rollout_id, query_set_id, scores, seq);

CREATE OR REPLACE VIEW reporting.match_threshold AS
SELECT t.rollout_id AS rollout, g.name AS gallery, s.name AS queryset, t.seq,
       t.items::double precision / nullif(r.n_items, 0) AS coverage, t.n, t.true_pairs,
       t.micro_ap, t.recall_at_p90, t.threshold, t.old_micro_ap, t.old_recall_at_p90, t.old_threshold,
       t.accepted, t.accepted_right, t.lost, t.gained, t.at, t.scores, t.background_n, b.neighbour, b.beta
FROM match_threshold t
JOIN rollout r ON r.id = t.rollout_id
JOIN query_set s ON s.id = t.query_set_id
JOIN gallery g ON g.id = r.gallery_id
LEFT JOIN background_set b ON b.id = t.background_id;
