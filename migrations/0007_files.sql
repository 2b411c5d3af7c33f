-- Files: what people have uploaded. Their content lies in the object store, under `files/ID/`.

CREATE TABLE files (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    -- As it was given: a text, and never a path.
    name text NOT NULL,
    -- 'receiving' until all of the content is in the store.
    state text NOT NULL DEFAULT 'receiving' CHECK (state IN ('receiving', 'stored')),
    -- What the store calls an upload in parts, while there is one.
    upload text,
    -- While it is received: when something last moved.
    moved_at timestamptz NOT NULL DEFAULT now(),
    -- In bytes.
    size bigint,
    sha256 bytea,
    -- What the content says that it is, whatever its client said.
    media_type text,
    -- Of an image, in pixels.
    width integer,
    height integer,
    -- The sizes of thumbnails that there are: 'small', 'large'.
    thumbnails text[] NOT NULL DEFAULT '{}',
    -- Why an image has no thumbnails.
    remark text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT files_whole CHECK (state = 'receiving' OR (size IS NOT NULL AND sha256 IS NOT NULL AND media_type IS NOT NULL))
);

CREATE INDEX files_account ON files (account_id, id);
CREATE INDEX files_receiving ON files (moved_at) WHERE state = 'receiving';

-- What the stored files of an account take together, so that a quota is one row to look at.
CREATE TABLE file_usage (
    account_id uuid PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    files bigint NOT NULL,
    bytes bigint NOT NULL
);

-- Objects that no row knows, as listings have found them. They are deleted a day after they were found first.
CREATE TABLE stray_objects (
    key text PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT now(),
    -- When a listing last found it.
    seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX stray_objects_seen ON stray_objects (seen_at);
