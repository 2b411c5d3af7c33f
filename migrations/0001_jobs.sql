-- The queue and the schedule: work that must survive the process that asked for it.

CREATE TABLE jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    -- Ready: when it is due. Leased: when the lease ends.
    run_at timestamptz NOT NULL DEFAULT now(),
    -- How many times it has been started.
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL CHECK (max_attempts > 0),
    -- Set while a worker holds the job; a worker with another token has lost it.
    token uuid,
    -- Of one kind, at most one job that is not dead has this key.
    unique_key text,
    last_error text,
    -- Set when it is given up; it then stays for a person to look at.
    dead_at timestamptz,
    -- The request that asked for it: {"request_id": "…"}.
    trace_context jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
)
-- Rows live for moments: without these the dead ones would outnumber the living a thousand to one.
WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX jobs_ready ON jobs (kind, run_at) WHERE token IS NULL AND dead_at IS NULL;
CREATE INDEX jobs_leased ON jobs (run_at) WHERE token IS NOT NULL;
CREATE INDEX jobs_dead ON jobs (id) WHERE dead_at IS NOT NULL;
CREATE UNIQUE INDEX jobs_unique_key ON jobs (kind, unique_key) WHERE unique_key IS NOT NULL AND dead_at IS NULL;

CREATE TABLE schedules (
    name text PRIMARY KEY,
    -- The latest tick that was turned into a job, or that lay in the past when the schedule was first seen.
    last_tick timestamptz NOT NULL
);
