-- Answers to requests that carried an Idempotency-Key, so that the same request gives the same answer once more.

CREATE TABLE idempotency_keys (
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    route text NOT NULL,
    key text NOT NULL,
    -- SHA-256 of the request's body: another body under the same key is a mistake.
    body_hash bytea NOT NULL,
    answer jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, route, key)
);

CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
