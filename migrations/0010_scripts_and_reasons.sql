-- The scripts of `admin run` that ran on this deploy. Each runs once.
CREATE TABLE scripts_run (
    name text PRIMARY KEY,
    ran_at timestamptz NOT NULL DEFAULT now(),
    changed_rows bigint NOT NULL,
    reason text NOT NULL
);

ALTER TABLE audit_events
    -- Why an operator did it: `admin --reason`.
    ADD COLUMN reason text;
