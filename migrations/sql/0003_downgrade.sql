-- Back to batches numbered from 0. Only a ledger that uses nothing newer can go back; anything else is refused.

DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM late_item) OR EXISTS (SELECT 1 FROM item WHERE deleted_at IS NOT NULL)
       OR EXISTS (SELECT 1 FROM rollout WHERE state = 'superseded')
       OR EXISTS (SELECT 1 FROM batch b JOIN rollout r ON r.id = b.rollout_id
                  WHERE b.first_rank % r.batch_size <> 0 OR b.fence > 1 AND b.state = 'committed') THEN
        RAISE EXCEPTION 'the ledger holds late or deleted items, split batches, batches of a second attempt or superseded '
                        'rollouts: revision 0002 cannot hold them';
    END IF;
END
$$;

DROP SCHEMA reporting CASCADE;
DROP FUNCTION embedding_version(bigint, bigint);
DROP TABLE outbox, duty, superseded, late_item, replaced;
ALTER TABLE quarantine DROP COLUMN evidence;
ALTER TABLE model DROP COLUMN files;
ALTER TABLE adapter DROP COLUMN files;
DELETE FROM log_event WHERE kind = 'deleted';
ALTER TABLE log_event
    DROP CONSTRAINT log_event_kind_check,
    DROP COLUMN rows,
    ADD CONSTRAINT log_event_kind_check CHECK (kind IN ('deployed', 'finalized', 'reset')),
    ALTER COLUMN rollout_id SET NOT NULL;
DROP INDEX item_key;
DROP INDEX item_label;
ALTER TABLE item DROP COLUMN deleted_at, ADD CONSTRAINT item_gallery_id_key_key UNIQUE (gallery_id, key);
CREATE INDEX item_label ON item (gallery_id, label) WHERE label IS NOT NULL;
ALTER TABLE gallery DROP COLUMN n_deleted;
DROP INDEX rollout_one_active;
ALTER TABLE rollout
    DROP CONSTRAINT rollout_state_check,
    ADD CONSTRAINT rollout_state_check CHECK (state IN ('planned', 'deployed', 'backfilling', 'paused', 'finalizable',
        'finalized', 'cancelling', 'cancelled', 'rolling_back', 'rolled_back', 'failed')),
    DROP COLUMN plan_items, DROP COLUMN late_revision, DROP COLUMN failures_in_row, DROP COLUMN budget_from_seq,
    DROP COLUMN throttle_reason, DROP COLUMN throttle_value, DROP COLUMN throttle_limit, DROP COLUMN throttled_at,
    DROP COLUMN finalize_asked_by, DROP COLUMN reclaimed_at;
CREATE UNIQUE INDEX rollout_one_active ON rollout (gallery_id)
    WHERE state NOT IN ('finalized', 'cancelled', 'rolled_back', 'failed');
DROP INDEX batch_open;
DROP INDEX batch_leased;
ALTER TABLE batch DROP CONSTRAINT batch_pkey, DROP CONSTRAINT batch_first_rank_check;
UPDATE batch b SET first_rank = b.first_rank / r.batch_size FROM rollout r WHERE r.id = b.rollout_id;
ALTER TABLE batch RENAME COLUMN first_rank TO no;
ALTER TABLE batch DROP COLUMN claimed_at, DROP COLUMN superseded, ADD PRIMARY KEY (rollout_id, no), ADD CHECK (no >= 0);
CREATE INDEX batch_open ON batch (rollout_id, no) WHERE state <> 'committed';

-- The version an item is served in: the newest rollout whose batch with that item's rank is committed.
-- adapter_id is set where the stored vector is served through a deployed rollout's forward adapter.
CREATE FUNCTION embedding_version(p_gallery bigint, p_row bigint)
RETURNS TABLE (rollout_id bigint, model_id bigint, adapter_id bigint, batch_no bigint, uncertainty real,
               seq bigint, committed_at timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = hotrefresh AS $$
    SELECT r.id, r.to_model_id,
           (SELECT newer.adapter_id FROM hotrefresh.rollout newer
            WHERE newer.gallery_id = p_gallery AND newer.id > r.id AND newer.adapted_uri IS NOT NULL
              AND newer.state IN ('deployed', 'backfilling', 'paused', 'finalizable', 'finalized')
            ORDER BY newer.id DESC LIMIT 1),
           b.no, b.uncertainty, b.seq, b.committed_at
    FROM hotrefresh.rollout r
    CROSS JOIN LATERAL (SELECT hotrefresh.rank_of(r.id, p_row) AS rank) AS place
    JOIN hotrefresh.batch b ON b.rollout_id = r.id AND b.no = place.rank / r.batch_size
    WHERE r.gallery_id = p_gallery AND b.state = 'committed'
      AND r.state IN ('deployed', 'backfilling', 'paused', 'finalizable', 'finalized')
      AND NOT coalesce((place.rank % r.batch_size)::integer = ANY (b.holes), false)
    ORDER BY r.id DESC LIMIT 1
$$;
