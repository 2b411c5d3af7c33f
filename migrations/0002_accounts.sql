-- Who may come in.

CREATE TABLE accounts (
    id uuid PRIMARY KEY,
    -- As it was typed; case does not tell two accounts apart.
    email text NOT NULL,
    -- The address that shall take its place, and is not yet shown to be the person's.
    new_email text,
    -- A PHC string: argon2id, its parameters, salt and hash.
    password_hash text NOT NULL,
    role text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
    -- Whether the daily digest is wanted.
    digest boolean NOT NULL DEFAULT true,
    -- When the address was shown to be the person's; no mail but the check goes out before.
    verified_at timestamptz,
    -- Set while nobody may use the account.
    suspended_at timestamptz,
    -- Raised to end every session that began before.
    session_epoch integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX accounts_email ON accounts (lower(email));

-- What a mailed link carries, as a SHA-256 hash: the database alone opens nothing.
CREATE TABLE mailed_tokens (
    token_hash bytea PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    purpose text NOT NULL CHECK (purpose IN ('verify', 'reset')),
    -- The address that it was mailed to, and whose owner therefore holds it.
    email text NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE INDEX mailed_tokens_account ON mailed_tokens (account_id);
CREATE INDEX mailed_tokens_expiry ON mailed_tokens (expires_at);

-- What programs come in with, as a SHA-256 hash.
CREATE TABLE api_tokens (
    id uuid PRIMARY KEY,
    token_hash bytea NOT NULL UNIQUE,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    -- What its owner knows it by.
    name text NOT NULL,
    scopes text[] NOT NULL,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX api_tokens_account ON api_tokens (account_id, id);
CREATE INDEX api_tokens_expiry ON api_tokens (expires_at);

-- Who did what to which account, for a person who has to find out later.
CREATE TABLE audit_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    action text NOT NULL,
    -- No reference: what was done outlives the account. None where a log-in named an unknown one.
    account_id uuid,
    -- None for what an operator did with a one-off task.
    request_id text,
    address text
);

CREATE INDEX audit_events_account ON audit_events (account_id, at);
CREATE INDEX audit_events_at ON audit_events (at);
