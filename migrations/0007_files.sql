-- Uploaded files. Their content is in the object store, under `files/ID/`.

CREATE TABLE files (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE,
    -- As the client sent it. It is never used as a path.
    name text NOT NULL,
    -- 'receiving' until all of the content is in the store.
    state text NOT NULL DEFAULT 'receiving' CHECK (state IN ('receiving', 'stored')),
    -- The store's id of a multipart upload, while one is open.
    upload text,
    -- When the upload last made progress.
    moved_at timestamptz NOT NULL DEFAULT now(),
    -- Size in bytes.
    size bigint,
    sha256 bytea,
    -- Detected from the content. The client's `Content-Type` is ignored.
    media_type text,
    -- Size of an image in pixels.
    width integer,
    height integer,
    -- The sizes of the thumbnails that exist: 'small', 'large'.
    thumbnails text[] NOT NULL DEFAULT '{}',
    -- Why an image has no thumbnails.
    remark text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT files_whole CHECK (state = 'receiving' OR (size IS NOT NULL AND sha256 IS NOT NULL AND media_type IS NOT NULL))
);

CREATE INDEX files_account ON files (account_id, id);
CREATE INDEX files_receiving ON files (moved_at) WHERE state = 'receiving';

-- The totals of each account's stored files, so that checking a quota reads one row.
CREATE TABLE file_usage (
    account_id uuid PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    files bigint NOT NULL,
    bytes bigint NOT NULL
);

-- Objects without a row in `files`, found by listing the store. They are deleted a day after they were first found.
CREATE TABLE stray_objects (
    key text PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT now(),
    -- When a listing last found it.
    seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX stray_objects_seen ON stray_objects (seen_at);

-- Names this deploy in the object store, whose object `owner` has the same id. Only the owner deletes objects without a row.
CREATE TABLE object_store_owner (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id uuid NOT NULL DEFAULT gen_random_uuid()
);
