-- The production engine. A batch is any range of ranks: it can be split, cut anew, and ranks can be added behind the plan.

DROP SCHEMA reporting CASCADE;
DROP FUNCTION embedding_version(bigint, bigint);

-- Batch: its key is the rank of its first item ----------------------------------------------------------------------
DROP INDEX batch_open;
ALTER TABLE batch DROP CONSTRAINT batch_pkey;
ALTER TABLE batch DROP CONSTRAINT batch_no_check;
ALTER TABLE batch RENAME COLUMN no TO first_rank;
UPDATE batch b SET first_rank = b.first_rank * r.batch_size FROM rollout r WHERE r.id = b.rollout_id;
ALTER TABLE batch
    ADD PRIMARY KEY (rollout_id, first_rank),
    ADD CHECK (first_rank >= 0),
    ADD COLUMN claimed_at timestamptz,
    ADD COLUMN superseded integer[];       -- places whose item was changed or deleted meanwhile: their bytes do not count
-- Bytes lie under the fence they were written with; those of the release before, which had one file, under fence 1.
UPDATE batch SET fence = 1 WHERE state = 'committed';
CREATE INDEX batch_open ON batch (rollout_id, band, first_rank) WHERE state <> 'committed';
CREATE INDEX batch_leased ON batch (rollout_id) WHERE state = 'leased';

-- Rollout ------------------------------------------------------------------------------------------------------------
ALTER TABLE rollout
    DROP CONSTRAINT rollout_state_check,
    ADD CONSTRAINT rollout_state_check CHECK (state IN ('planned', 'deployed', 'backfilling', 'paused', 'finalizable',
        'finalized', 'superseded', 'cancelling', 'cancelled', 'rolling_back', 'rolled_back', 'failed')),
    ADD COLUMN plan_items bigint,                        -- ranks of the permutation; late items have those behind
    ADD COLUMN late_revision integer NOT NULL DEFAULT 0, -- bumped when ranks are superseded: a commit must know it
    ADD COLUMN failures_in_row integer NOT NULL DEFAULT 0,
    ADD COLUMN budget_from_seq bigint NOT NULL DEFAULT 0,-- the failure budget counts from here: resume forgives
    ADD COLUMN throttle_reason text,
    ADD COLUMN throttle_value double precision,
    ADD COLUMN throttle_limit double precision,
    ADD COLUMN throttled_at timestamptz,
    ADD COLUMN finalize_asked_by text,                   -- finalize as soon as nothing blocks it
    ADD COLUMN reclaimed_at timestamptz;                 -- its extents are gone
UPDATE rollout SET plan_items = n_items;
ALTER TABLE rollout ALTER COLUMN plan_items SET NOT NULL, ADD CHECK (plan_items <= n_items);
DROP INDEX rollout_one_active;
CREATE UNIQUE INDEX rollout_one_active ON rollout (gallery_id)
    WHERE state NOT IN ('finalized', 'superseded', 'cancelled', 'rolled_back', 'failed');

-- How many items of an older, unfinished rollout a newer one has replaced: the coverage of three versions at once.
CREATE TABLE replaced (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    older_id    bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    items       bigint NOT NULL,
    PRIMARY KEY (rollout_id, older_id)
);

-- An artifact's files in the store (name → bytes), for workers on other hosts.
ALTER TABLE model ADD COLUMN files jsonb;
ALTER TABLE adapter ADD COLUMN files jsonb;

-- Living galleries -----------------------------------------------------------------------------------------------------
ALTER TABLE item ADD COLUMN deleted_at timestamptz;
ALTER TABLE gallery ADD COLUMN n_deleted bigint NOT NULL DEFAULT 0 CHECK (n_deleted BETWEEN 0 AND n_items);
ALTER TABLE item DROP CONSTRAINT item_gallery_id_key_key;
-- The key first: with the gallery first, a fresh table without statistics would be read through this index for rows, too.
CREATE UNIQUE INDEX item_key ON item (key, gallery_id) WHERE deleted_at IS NULL;
DROP INDEX item_label;
CREATE INDEX item_label ON item (gallery_id, label) WHERE label IS NOT NULL AND deleted_at IS NULL;

-- Items added, changed or retried after planning: ranks behind the plan, in batches of their own.
CREATE TABLE late_item (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    rank        bigint NOT NULL,
    row         bigint NOT NULL,
    PRIMARY KEY (rollout_id, rank)
);
CREATE INDEX late_item_row ON late_item (rollout_id, row);

-- Ranks whose item was changed or deleted before they were committed: the commit leaves them out.
CREATE TABLE superseded (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    rank        bigint NOT NULL,
    PRIMARY KEY (rollout_id, rank)
);

ALTER TABLE log_event
    ALTER COLUMN rollout_id DROP NOT NULL,
    DROP CONSTRAINT log_event_kind_check,
    ADD CONSTRAINT log_event_kind_check CHECK (kind IN ('deployed', 'finalized', 'reset', 'deleted')),
    ADD COLUMN rows bigint[],
    ADD CHECK ((kind = 'deleted') = (rows IS NOT NULL)),
    ADD CHECK (kind = 'deleted' OR rollout_id IS NOT NULL);

ALTER TABLE quarantine ADD COLUMN evidence jsonb;

-- Wake-ups and duties -----------------------------------------------------------------------------------------------
CREATE TABLE outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task        text NOT NULL CHECK (task IN ('deploy', 'plan', 'drain', 'evaluate', 'finalize', 'sweep')),
    rollout_id  bigint NOT NULL,               -- no reference: its check would wait for commits, and a hint may dangle
    lane        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent_at     timestamptz
);
-- The window of outstanding wake-ups: one of a kind for a rollout waits to be rung, however often it is asked for.
CREATE UNIQUE INDEX outbox_waiting ON outbox (task, rollout_id) WHERE sent_at IS NULL;
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

CREATE TABLE duty (
    name   text PRIMARY KEY,
    owner  text NOT NULL,
    until  timestamptz NOT NULL
);

-- An item's place in a rollout's order; NULL for an item that came after the plan.
CREATE OR REPLACE FUNCTION rank_of(p_rollout bigint, p_row bigint) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = hotrefresh AS $$
    SELECT CASE WHEN length(b) = 4 THEN
               get_byte(b, 0) + get_byte(b, 1) * 256 + get_byte(b, 2) * 65536 + get_byte(b, 3)::bigint * 16777216 END
    FROM (SELECT substring(ranks FROM (p_row % 65536)::integer * 4 + 1 FOR 4) AS b
          FROM hotrefresh.plan_chunk WHERE rollout_id = p_rollout AND no = p_row / 65536) AS slice
$$;

-- The version an item is served in: the newest rollout that has a committed batch with one of the item's ranks.
-- Of several ranks the last committed content counts; changed content that could not be embedded leaves no version.
CREATE FUNCTION embedding_version(p_gallery bigint, p_row bigint)
RETURNS TABLE (rollout_id bigint, model_id bigint, adapter_id bigint, first_rank bigint, uncertainty real,
               seq bigint, committed_at timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = hotrefresh AS $$
    SELECT found.id, found.to_model_id,
           (SELECT newer.adapter_id FROM hotrefresh.rollout newer
            WHERE newer.gallery_id = p_gallery AND newer.id > found.id AND newer.adapted_uri IS NOT NULL
              AND newer.state IN ('deployed', 'backfilling', 'paused', 'finalizable', 'finalized', 'superseded')
            ORDER BY newer.id DESC LIMIT 1),
           found.first_rank, found.uncertainty, found.seq, found.committed_at
    FROM (
        SELECT r.id, r.to_model_id, newest.*
        FROM hotrefresh.rollout r
        CROSS JOIN LATERAL (
            SELECT b.first_rank, b.uncertainty, b.seq, b.committed_at, place.rank >= r.plan_items AS late,
                   coalesce((place.rank - b.first_rank)::integer = ANY (b.holes), false) AS hole
            FROM (SELECT l.rank FROM hotrefresh.late_item l WHERE l.rollout_id = r.id AND l.row = p_row
                  UNION ALL SELECT hotrefresh.rank_of(r.id, p_row)) AS place
            CROSS JOIN LATERAL (SELECT * FROM hotrefresh.batch WHERE batch.rollout_id = r.id
                                AND batch.first_rank <= place.rank ORDER BY batch.first_rank DESC LIMIT 1) AS b
            WHERE b.seq IS NOT NULL AND place.rank < b.first_rank + b.n
              AND NOT coalesce((place.rank - b.first_rank)::integer = ANY (b.superseded), false)
            ORDER BY place.rank DESC LIMIT 1
        ) AS newest
        WHERE r.gallery_id = p_gallery AND r.reclaimed_at IS NULL AND (newest.late OR NOT newest.hole)
          AND r.state IN ('deployed', 'backfilling', 'paused', 'finalizable', 'finalized', 'superseded')
        ORDER BY r.id DESC LIMIT 1
    ) AS found
    WHERE NOT found.hole
$$;
