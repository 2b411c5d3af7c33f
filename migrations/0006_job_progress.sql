-- Long jobs resume where an earlier attempt stopped.

ALTER TABLE jobs
    -- The position that the job saved last. The next attempt starts from it.
    ADD COLUMN progress jsonb;
