-- Long work that goes on where it was.

ALTER TABLE jobs
    -- What the job last saved of where it is; its next attempt begins there.
    ADD COLUMN progress jsonb;
