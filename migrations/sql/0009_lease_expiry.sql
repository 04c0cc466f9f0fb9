-- What the metrics of workers are made of: leases that ran out, and how long a commit took.

-- A table of its own, not a column of `rollout`: whoever takes a lease back holds the batch, and a commit locks the rollout
-- before the batch. The foreign key's share lock goes with the commit's.
CREATE TABLE lease_expiry (
    rollout_id  bigint PRIMARY KEY REFERENCES rollout ON DELETE CASCADE,
    leases      bigint NOT NULL CHECK (leases > 0)
);

-- Of the worker's commit before this one: how long a commit takes is known when its row is written.
ALTER TABLE batch ADD COLUMN previous_commit_s real;
