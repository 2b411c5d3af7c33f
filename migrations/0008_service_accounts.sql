-- Accounts of services, which authenticate with access tokens of an issuer. Each has a row in `accounts` too, with an
-- address that receives no mail and a hash that no password has. Earlier releases treat it as an account that nobody
-- can log in to.

CREATE TABLE service_accounts (
    account_id uuid PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    -- The token's `iss` and `sub`.
    issuer text NOT NULL,
    subject text NOT NULL,
    -- What the service may do at most. A token of it may allow less.
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT service_accounts_identity UNIQUE (issuer, subject)
);
