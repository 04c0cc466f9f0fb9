-- The ledger. Nothing here is written per item at run time: an item's version is the state of batch rank / batch_size.
-- Every state a column may take is held by a CHECK, every "only one" by a unique index.

CREATE TABLE model (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE,
    modality      text NOT NULL CHECK (modality IN ('image', 'text')),
    architecture  text NOT NULL,
    dim           integer NOT NULL CHECK (dim > 0),
    digest        text NOT NULL,
    fingerprint   text NOT NULL,           -- the space of its vectors: digest, preprocessing, dim, normalisation
    uri           text NOT NULL,           -- folder of the artifact
    manifest      jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE adapter (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name             text NOT NULL UNIQUE,
    source_model_id  bigint NOT NULL REFERENCES model,
    target_model_id  bigint NOT NULL REFERENCES model,
    digest           text NOT NULL,
    fingerprint      text NOT NULL,
    uri              text NOT NULL,
    manifest         jsonb NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (source_model_id <> target_model_id)
);

CREATE TABLE gallery (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    modality    text NOT NULL CHECK (modality IN ('image', 'text')),
    source      text NOT NULL,
    n_items     bigint NOT NULL DEFAULT 0 CHECK (n_items >= 0),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row a gallery, locked by every commit until COMMIT: the log is serial and without gaps.
CREATE TABLE gallery_log (
    gallery_id  bigint PRIMARY KEY REFERENCES gallery ON DELETE CASCADE,
    last_seq    bigint NOT NULL DEFAULT 0
);

CREATE TABLE item (
    gallery_id  bigint NOT NULL REFERENCES gallery ON DELETE CASCADE,
    row         bigint NOT NULL CHECK (row >= 0),
    key         text NOT NULL,
    uri         text NOT NULL,
    label       text,
    PRIMARY KEY (gallery_id, row),
    UNIQUE (gallery_id, key)
);
CREATE INDEX item_label ON item (gallery_id, label) WHERE label IS NOT NULL;

CREATE TABLE query_set (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gallery_id  bigint NOT NULL REFERENCES gallery ON DELETE CASCADE,
    name        text NOT NULL,
    relevance   text NOT NULL CHECK (relevance IN ('label', 'pairs')),
    source      text NOT NULL,
    n_queries   bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (gallery_id, name)
);

CREATE TABLE query (
    query_set_id  bigint NOT NULL REFERENCES query_set ON DELETE CASCADE,
    no            integer NOT NULL CHECK (no >= 0),
    key           text NOT NULL,
    uri           text NOT NULL,
    label         text,
    PRIMARY KEY (query_set_id, no),
    UNIQUE (query_set_id, key)
);

CREATE TABLE relevance (
    query_set_id  bigint NOT NULL,
    query_no      integer NOT NULL,
    item_row      bigint NOT NULL,
    PRIMARY KEY (query_set_id, query_no, item_row),
    FOREIGN KEY (query_set_id, query_no) REFERENCES query ON DELETE CASCADE
);

CREATE TABLE certificate (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    query_model_id    bigint NOT NULL REFERENCES model,
    gallery_model_id  bigint NOT NULL REFERENCES model,
    adapter_id        bigint REFERENCES adapter,
    query_set_id      bigint NOT NULL REFERENCES query_set ON DELETE CASCADE,
    verdict           text NOT NULL CHECK (verdict IN ('certified', 'refused', 'inconclusive')),
    reason            text NOT NULL,
    measured          jsonb NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX certificate_pair ON certificate (query_model_id, gallery_model_id, id DESC);

CREATE TABLE rollout (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gallery_id         bigint NOT NULL REFERENCES gallery ON DELETE CASCADE,
    kind               text NOT NULL CHECK (kind IN ('initial', 'upgrade')),
    from_model_id      bigint REFERENCES model,
    to_model_id        bigint NOT NULL REFERENCES model,
    adapter_id         bigint REFERENCES adapter,
    certificate_id     bigint REFERENCES certificate,
    state              text NOT NULL CHECK (state IN ('planned', 'deployed', 'backfilling', 'paused', 'finalizable',
                           'finalized', 'cancelling', 'cancelled', 'rolling_back', 'rolled_back', 'failed')),
    reason             text,
    generation         integer NOT NULL DEFAULT 1,   -- bumped by pause, cancel, rollback: nothing older commits
    order_name         text NOT NULL,
    config             jsonb NOT NULL,               -- resolved: seed, temperature, prototypes, lease …
    batch_size         integer NOT NULL CHECK (batch_size BETWEEN 1 AND 65536),
    n_items            bigint NOT NULL,
    n_batches          bigint NOT NULL DEFAULT 0,    -- 0 until the plan is written
    committed_batches  bigint NOT NULL DEFAULT 0,
    committed_items    bigint NOT NULL DEFAULT 0,
    quarantined_items  bigint NOT NULL DEFAULT 0,
    extent_uri         text NOT NULL,
    adapted_uri        text,                         -- set when the adapted extent set is complete
    actor              text NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    deployed_at        timestamptz,
    backfill_at        timestamptz,
    last_progress_at   timestamptz,
    finished_at        timestamptz,
    paused_at          timestamptz,
    paused_s           double precision NOT NULL DEFAULT 0,
    CHECK (committed_batches <= n_batches),
    CHECK (committed_items + quarantined_items <= n_items),
    CHECK (state <> 'paused' OR paused_at IS NOT NULL),
    CHECK (kind = 'initial' OR from_model_id IS NOT NULL)
);
-- The lock that makes a second `start` on the same gallery fail, whoever is first.
CREATE UNIQUE INDEX rollout_one_active ON rollout (gallery_id)
    WHERE state NOT IN ('finalized', 'cancelled', 'rolled_back', 'failed');

-- 65,536 ranks of consecutive rows, little-endian u32. EXTERNAL: a rank is read by a slice, without decompression.
CREATE TABLE plan_chunk (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    no          integer NOT NULL CHECK (no >= 0),
    ranks       bytea NOT NULL,
    PRIMARY KEY (rollout_id, no)
);
ALTER TABLE plan_chunk ALTER COLUMN ranks SET STORAGE EXTERNAL;

CREATE TABLE batch (
    rollout_id    bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    no            bigint NOT NULL CHECK (no >= 0),
    state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'leased', 'committed')),
    band          smallint NOT NULL,
    n             integer NOT NULL CHECK (n > 0),
    fence         integer NOT NULL DEFAULT 0,
    attempt       integer NOT NULL DEFAULT 0,        -- counted at claim: a killer of workers cannot hide
    uncertainty   real,                              -- mean score of its items when planned
    lease_owner   text,
    lease_until   timestamptz,
    available_at  timestamptz,                       -- a retry waits until then
    seq           bigint,                            -- its place in the gallery's log
    crc           bigint,
    holes         integer[],                         -- places in the batch whose items are quarantined
    error         text,
    committed_at  timestamptz,
    decode_s      real,
    encode_s      real,
    store_s       real,
    PRIMARY KEY (rollout_id, no),
    CHECK (state <> 'leased' OR (lease_owner IS NOT NULL AND lease_until IS NOT NULL)),
    CHECK ((state = 'committed') = (seq IS NOT NULL))
) WITH (fillfactor = 80);
CREATE INDEX batch_open ON batch (rollout_id, no) WHERE state <> 'committed';
CREATE UNIQUE INDEX batch_log ON batch (rollout_id, seq) WHERE seq IS NOT NULL;

-- What else happens to a gallery's vectors, in the same log: deployed (with or without adapted vectors), reset.
CREATE TABLE log_event (
    gallery_id  bigint NOT NULL REFERENCES gallery ON DELETE CASCADE,
    seq         bigint NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('deployed', 'finalized', 'reset')),
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (gallery_id, seq)
);

-- Roll-ups written inside the commit: items by ten seconds, batches by priority band.
CREATE TABLE progress (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    at          timestamptz NOT NULL,
    items       bigint NOT NULL,
    batches     bigint NOT NULL,
    PRIMARY KEY (rollout_id, at)
);
CREATE TABLE band_progress (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    band        smallint NOT NULL,
    batches     bigint NOT NULL,
    committed   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (rollout_id, band),
    CHECK (committed <= batches)
);

CREATE TABLE quarantine (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    row         bigint NOT NULL,
    reason      text NOT NULL,
    message     text NOT NULL,
    attempts    integer NOT NULL DEFAULT 1,
    first_seen  timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, row)
);

-- Items and queries that were refused when a gallery or a query set was read.
CREATE TABLE rejected (
    gallery_id    bigint NOT NULL REFERENCES gallery ON DELETE CASCADE,
    query_set_id  bigint REFERENCES query_set ON DELETE CASCADE,
    key           text NOT NULL,
    uri           text NOT NULL,
    reason        text NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX rejected_gallery ON rejected (gallery_id);

-- Exactly one row for any instant after the first: valid_to of one is valid_from of the next.
CREATE TABLE serving (
    gallery_id   bigint NOT NULL REFERENCES gallery ON DELETE CASCADE,
    generation   integer NOT NULL,
    model_id     bigint NOT NULL REFERENCES model,
    rollout_id   bigint REFERENCES rollout,
    valid_from   timestamptz NOT NULL,
    valid_to     timestamptz,
    actor        text NOT NULL,
    reason       text NOT NULL,
    PRIMARY KEY (gallery_id, generation),
    CHECK (valid_to IS NULL OR valid_to >= valid_from)
);
CREATE UNIQUE INDEX serving_current ON serving (gallery_id) WHERE valid_to IS NULL;

-- One row a query set after each batch the evaluator has applied. Counts, never rates.
CREATE TABLE evaluation (
    rollout_id               bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    query_set_id             bigint NOT NULL REFERENCES query_set ON DELETE CASCADE,
    seq                      bigint NOT NULL,
    items                    bigint NOT NULL,        -- items of the new model at that point
    k                        integer NOT NULL,
    n                        integer NOT NULL,       -- queries with at least one relevant item
    both_right               integer NOT NULL,
    negative_flips           integer NOT NULL,
    positive_flips           integer NOT NULL,
    both_wrong               integer NOT NULL,
    previous_negative_flips  integer NOT NULL,       -- against the previous stage
    previous_positive_flips  integer NOT NULL,
    at                       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, query_set_id, seq),
    CHECK (both_right + negative_flips + positive_flips + both_wrong = n)
);

CREATE TABLE flip (
    rollout_id    bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    query_set_id  bigint NOT NULL,
    query_no      integer NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('negative', 'positive')),
    reference     text NOT NULL CHECK (reference IN ('old_system', 'previous_stage')),
    opened_seq    bigint NOT NULL,
    healed_seq    bigint,
    old_row       bigint,
    new_row       bigint,
    old_score     real,
    new_score     real,
    opened_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    healed_at     timestamptz,
    PRIMARY KEY (rollout_id, query_set_id, query_no, reference, opened_seq),
    FOREIGN KEY (query_set_id, query_no) REFERENCES query ON DELETE CASCADE,
    CHECK (healed_seq IS NULL OR healed_seq > opened_seq)
);
CREATE INDEX flip_open ON flip (rollout_id, query_set_id, reference) WHERE healed_seq IS NULL;

CREATE TABLE curve_point (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    metric      text NOT NULL,
    order_name  text NOT NULL,
    coverage    double precision NOT NULL CHECK (coverage BETWEEN 0 AND 1),
    value       double precision NOT NULL,
    PRIMARY KEY (rollout_id, metric, order_name, coverage)
);

CREATE TABLE gate_decision (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    gate        text NOT NULL,
    result      text NOT NULL CHECK (result IN ('pass', 'fail', 'inconclusive')),
    value       double precision,
    "limit"     double precision,
    sample_n    integer NOT NULL,
    dry_run     boolean NOT NULL DEFAULT false,
    effect      text NOT NULL CHECK (effect IN ('none', 'pause', 'rollback', 'alert', 'refuse')),
    decided_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE worker (
    id                   text PRIMARY KEY,
    host                 text NOT NULL,
    pid                  integer NOT NULL,
    device               text NOT NULL,
    version              text NOT NULL,
    started_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_heartbeat       timestamptz NOT NULL DEFAULT clock_timestamp(),
    expected_interval_s  double precision NOT NULL,
    stopped_at           timestamptz,
    success_count        bigint NOT NULL DEFAULT 0,
    error_count          bigint NOT NULL DEFAULT 0,
    last_error           text
);

CREATE TABLE audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor   text NOT NULL,
    action  text NOT NULL,
    target  text NOT NULL,
    before  jsonb,
    after   jsonb
);

-- An item's place in a rollout's order, out of its chunk. SECURITY DEFINER: the reporting views call these for a role
-- that may read no table.
CREATE FUNCTION rank_of(p_rollout bigint, p_row bigint) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = hotrefresh AS $$
    SELECT get_byte(b, 0) + get_byte(b, 1) * 256 + get_byte(b, 2) * 65536 + get_byte(b, 3)::bigint * 16777216
    FROM (SELECT substring(ranks FROM (p_row % 65536)::integer * 4 + 1 FOR 4) AS b
          FROM hotrefresh.plan_chunk WHERE rollout_id = p_rollout AND no = p_row / 65536) AS slice
$$;

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
