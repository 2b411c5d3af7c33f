-- Who may come in.

CREATE TABLE accounts (
    id uuid PRIMARY KEY,
    -- As it was typed; case does not tell two accounts apart.
    email text NOT NULL,
    -- A PHC string: argon2id, its parameters, salt and hash.
    password_hash text NOT NULL,
    role text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
    -- When the address was shown to be the person's; no mail but the check goes out before.
    verified_at timestamptz,
    -- Raised to end every session that began before.
    session_epoch integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX accounts_email ON accounts (lower(email));

-- What a mailed link carries, as a SHA-256 hash: the database alone opens nothing.
CREATE TABLE email_verifications (
    token_hash bytea PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    expires_at timestamptz NOT NULL
);

CREATE INDEX email_verifications_account ON email_verifications (account_id);
CREATE INDEX email_verifications_expiry ON email_verifications (expires_at);
