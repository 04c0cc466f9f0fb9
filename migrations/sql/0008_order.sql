-- Orders that follow what is seen: how often items are retrieved, and revisions of a plan.

-- A gallery's query log, summed up: one row a gallery, locked by whoever adds, and 65,536 counts of consecutive rows a chunk,
-- little-endian u32, no longer than the last row that was ever retrieved. Nothing here is a row an item.
CREATE TABLE demand (
    gallery_id  bigint PRIMARY KEY REFERENCES gallery ON DELETE CASCADE,
    retrievals  bigint NOT NULL DEFAULT 0 CHECK (retrievals >= 0),
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE demand_chunk (
    gallery_id  bigint NOT NULL REFERENCES demand ON DELETE CASCADE,
    no          integer NOT NULL CHECK (no >= 0),
    counts      bytea NOT NULL CHECK (length(counts) % 4 = 0 AND length(counts) <= 262144),
    PRIMARY KEY (gallery_id, no)
);

-- A revision gives the ranks of waiting batches other rows. Its inverse plan is a file of its own beside the extents, never
-- written again; revision 0 is the first plan and has no row here.
CREATE TABLE plan_revision (
    rollout_id       bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    no               integer NOT NULL CHECK (no >= 1),
    file             text NOT NULL,
    measure          text NOT NULL CHECK (measure IN ('flips', 'demand', 'flips+demand')),
    batches          bigint NOT NULL,          -- whose rows are others since
    items            bigint NOT NULL,          -- that have another rank since
    committed_items  bigint NOT NULL,          -- of the rollout at that moment
    automatic        boolean NOT NULL,
    actor            text NOT NULL,
    at               timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, no)
);

-- The revision that gave a batch its rows, and the one that its claim was made under. A worker of the release before does not
-- know of revisions and would embed other rows: the ledger refuses its claim.
ALTER TABLE batch
    ADD COLUMN plan_revision integer NOT NULL DEFAULT 0,
    ADD COLUMN claimed_revision integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT batch_claimed_revision CHECK (state <> 'leased' OR claimed_revision = plan_revision);

-- A column behind the others: the view is replaced in place, and keeps its grants and what is built on it.
CREATE OR REPLACE VIEW reporting.rollout_status AS
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
       n.actor, n.throttle_reason, n.throttle_value, n.throttle_limit, n.strategy,
       coalesce((SELECT max(p.no) FROM plan_revision p WHERE p.rollout_id = n.id), 0) AS plan_revision
FROM numbers n
JOIN gallery g ON g.id = n.gallery_id
JOIN model target ON target.id = n.to_model_id
LEFT JOIN model source ON source.id = n.from_model_id
LEFT JOIN adapter ON adapter.id = n.adapter_id;
