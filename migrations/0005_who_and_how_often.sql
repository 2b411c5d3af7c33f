-- Who did what, what mail is refused, how often it is sent; what an answer was, byte by byte.

ALTER TABLE audit_events
    -- Who did it: 'account', 'token', 'operator', or 'anyone' who had a mailed link or no account at all.
    ADD COLUMN actor text,
    -- The account's or the token's.
    ADD COLUMN actor_id uuid,
    -- What the caller named the request; `request_id` is always our own.
    ADD COLUMN caller_request_id text;

ALTER TABLE accounts
    -- When the mail server last refused its address for good.
    ADD COLUMN bounced_at timestamptz,
    -- The epoch that began when a change of its address was last undone. A change that was asked for before cannot be
    -- undone any more: whoever asked for it would undo the undoing.
    ADD COLUMN undone_epoch integer NOT NULL DEFAULT 0;

-- safe: the table holds a few thousand rows, and what the last release writes is allowed still
ALTER TABLE mailed_tokens
    DROP CONSTRAINT mailed_tokens_purpose_check,
    ADD CONSTRAINT mailed_tokens_purpose_check CHECK (purpose IN ('verify', 'reset', 'undo'));

ALTER TABLE api_tokens
    -- To the minute.
    ADD COLUMN last_used_at timestamptz;

ALTER TABLE idempotency_keys
    -- None in rows of 0.1.0, which knows `answer` alone.
    ADD COLUMN status smallint,
    ADD COLUMN headers jsonb,
    ADD COLUMN body bytea;

-- The mails of the last hour that anybody could cause, so that nobody is flooded.
CREATE TABLE mails (
    -- SHA-256 of the address in small letters.
    recipient bytea NOT NULL,
    -- However often a job is tried, it is one mail.
    job_id bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (recipient, job_id)
);

CREATE INDEX mails_at ON mails (at);
