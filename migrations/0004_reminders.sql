-- The sample feature: messages that arrive later.

CREATE TABLE reminders (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    message text NOT NULL,
    due_at timestamptz NOT NULL,
    -- Raised by each change; a job of an older version has nothing to do.
    version integer NOT NULL DEFAULT 1,
    sent_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX reminders_account ON reminders (account_id, due_at, id);
CREATE INDEX reminders_unsent ON reminders (due_at) WHERE sent_at IS NULL;
CREATE INDEX reminders_sent ON reminders (sent_at) WHERE sent_at IS NOT NULL;
