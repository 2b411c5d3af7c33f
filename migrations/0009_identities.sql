-- The identities of people at an identity provider. A person who proves one to the provider may log in to the account.
-- The last release does not know the table. Deleting an account deletes its rows there too.

CREATE TABLE identities (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    -- The ID token's `iss` and `sub`.
    issuer text NOT NULL,
    subject text NOT NULL,
    linked_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (issuer, subject)
);

CREATE INDEX identities_account ON identities (account_id, id);
