//! Every environment variable that a program reads (factor III: config).
//!
//! A section is one plain struct that `envy` fills. A field is a variable, with its name in lower case. Its doc comment is the
//! variable's description in `.env.example` and `docs/config.md`. Knows nothing of what the settings are for.

use std::num::NonZeroU32;
use std::time::Duration;

use lettre::message::Mailbox;
use secrecy::SecretString;

mod database_url;
mod issuer;
mod reading;
mod settings;
mod smtp_url;
mod storage_url;
mod telemetry_settings;

pub use database_url::DatabaseUrl;
pub use issuer::{IssuerUrl, Oidc, OidcClient, TokenIssuer, Tokens};
pub use reading::{Env, Problems, Section, Setting, Variable, read};
use reading::{group, section};
pub use settings::{CertificateFile, Endpoint, Lease, MinDuration, Names, Origins, PublicUrl, RedisUrl, Size};
pub use smtp_url::{SmtpServer, SmtpTls, SmtpUrl};
pub use storage_url::{Scheme, StorageUrl};
pub use telemetry_settings::{Exporter, LogFilter, LogFormat, Protocol, Sampler, Share};

section! {
    /// What every long-running process type reads.
    pub struct Process {
        /// Log level: `error`, `warn`, `info`, `debug`, `trace`, or filter directives such as `info,sqlx=warn`
        log_level: LogFilter = "info",
        /// Log format: `json`, one object a line, or `pretty`, for people
        log_format: LogFormat = "json",
        /// The platform's id of the release; `/version` and every log line show it
        release_version: Option<String>,
        /// Name of this process in the log; Heroku sets it
        dyno: Option<String>,
        /// Name of this process in the log where `DYNO` is unset; most platforms set it
        hostname: Option<String>,
        /// Port of a second listener with `/metrics`, `/livez` and `/readyz`; unset opens none
        metrics_port: Option<u16>,
        /// File with the certificates of a private authority; only these are trusted then, for TLS to every server, so add the public ones if you need them too
        ssl_cert_file: Option<CertificateFile>,
        /// How long requests and jobs in flight may take to finish after SIGTERM
        drain_timeout: Duration = "25s",
        /// OpenTelemetry collector that accepts traces over HTTP or HTTPS: `http://collector:4318`; unset sends none
        otel_exporter_otlp_endpoint: Option<Endpoint>,
        /// The full address for traces, including the path; replaces the collector's address
        otel_exporter_otlp_traces_endpoint: Option<Endpoint>,
        /// Protocol for all signals: `http/protobuf`
        otel_exporter_otlp_protocol: Option<Protocol>,
        /// Protocol for traces; replaces the one for all signals
        otel_exporter_otlp_traces_protocol: Option<Protocol>,
        /// Where traces are sent: `otlp` or `none`
        otel_traces_exporter: Exporter = "otlp",
        /// `true` sends no traces
        otel_sdk_disabled: bool = "false",
        /// Headers for the collector, such as its key: `name=value,name=value`
        otel_exporter_otlp_headers: Option<SecretString>,
        /// Name of the service in the log, in traces and at `/version`; distinguishes two services in one log store
        otel_service_name: String = "app",
        /// More attributes of this deploy for traces: `name=value,name=value`
        otel_resource_attributes: Option<String>,
        /// Which traces are sent: `always_on`, `always_off`, `traceidratio`, or one of these after `parentbased_`
        otel_traces_sampler: Option<Sampler>,
        /// The share of traces that `traceidratio` sends, from 0 to 1
        otel_traces_sampler_arg: Option<Share>,
        /// How many milliseconds spans wait, so that several are sent together
        otel_bsp_schedule_delay: Option<u16>,
    }
}

impl Process {
    /// Whether traces go to a collector.
    pub fn sends_traces(&self) -> bool {
        let named = self.otel_exporter_otlp_endpoint.is_some() || self.otel_exporter_otlp_traces_endpoint.is_some();
        named && !self.otel_sdk_disabled && self.otel_traces_exporter == Exporter::Otlp
    }
}

section! {
    /// The Postgres database.
    pub struct Database {
        /// Postgres database: `postgres://user:password@host:5432/name`; with `?sslmode=verify-full` the server's certificate is checked
        database_url: DatabaseUrl,
        /// Connections to Postgres that one process may hold; it holds one more for its probes, and a worker one more to listen for new jobs
        database_pool_size: NonZeroU32 = "10",
    }
}

section! {
    /// The Redis server that keeps the sessions.
    pub struct Redis {
        /// Redis: `redis://:password@host:6379/0`, or `rediss://` for TLS
        redis_url: RedisUrl,
        /// Connections to Redis that one process may hold; requests share them, and `web` holds one more for events
        redis_pool_size: NonZeroU32 = "4",
    }
}

section! {
    /// The mail server.
    pub struct Smtp {
        /// Mail server: `smtp://host:25`, `smtps://user:password@host`, or `smtp://host:587?tls=required`; `tls` may also be `opportunistic` or `none`, and defaults to `required` for a password on another host
        smtp_url: SmtpUrl,
        /// Sender of every mail: `Example <hello@example.com>`
        mail_from: Mailbox,
    }
}

section! {
    /// The object store that keeps the files.
    pub struct Storage {
        /// Object store: `s3://bucket` or `s3://bucket/prefix`; unset turns files off
        storage_url: Option<StorageUrl>,
        /// Public address of an S3 store for downloads, if it differs from the one that the programs use: `https://files.example.com`
        storage_public_url: Option<Endpoint>,
        /// Address of the object store, unless it is Amazon S3: `https://fly.storage.tigris.dev`
        aws_endpoint_url_s3: Option<Endpoint>,
        /// Region of the bucket
        aws_region: String = "us-east-1",
        /// Id of the access key for the object store; unset uses the platform's workload identity
        aws_access_key_id: Option<SecretString>,
        /// Secret of the access key for the object store
        aws_secret_access_key: Option<SecretString>,
        /// Session token of a temporary access key
        aws_session_token: Option<SecretString>,
        /// IAM role that this workload assumes; platforms with workload identity set it
        aws_role_arn: Option<String>,
        /// File with this workload's identity token, which is read again when it changes; platforms with workload identity set it
        aws_web_identity_token_file: Option<String>,
        /// Path from which a container gets its credentials; Amazon ECS sets it
        aws_container_credentials_relative_uri: Option<String>,
        /// URL from which a container gets its credentials; Amazon EKS sets it
        aws_container_credentials_full_uri: Option<Endpoint>,
        /// File with the token with which a container gets its credentials; Amazon EKS sets it
        aws_container_authorization_token_file: Option<String>,
        /// File with the key of a Google service account, for `gs://bucket`; unset uses the platform's workload identity
        google_application_credentials: Option<String>,
        /// Azure storage account, for `az://container`
        azure_storage_account_name: Option<String>,
        /// Key of the Azure storage account
        azure_storage_account_key: Option<SecretString>,
        /// Size of the largest file, at most 48GiB
        file_size_limit: Size = "100MiB",
        /// Total size of the files of one account
        file_quota: Size = "1GiB",
    }
}

section! {
    /// The public address of this deploy.
    pub struct Site {
        /// Canonical address of this deploy, for links, cookies and the origin check: `https://example.com`; with `https`, cookies are `Secure`
        public_url: PublicUrl,
    }
}

section! {
    /// How `web` serves.
    pub struct Http {
        /// Port that `web` listens on, on all interfaces
        port: u16 = "8080",
        /// How long a session lives after its last use
        session_ttl: MinDuration = "14d",
        /// How long a session lives in total
        session_max_age: MinDuration = "90d",
        /// How long a request may take; after that it gets a 503
        request_timeout: MinDuration = "10s",
        /// How long `web` keeps accepting connections after SIGTERM, while `/readyz` already fails
        drain_delay: Duration = "0s",
        /// Log-ins, sign-ups, resets and other requests that try a password or send a mail, per minute and client address
        rate_limit_login: NonZeroU32 = "10",
        /// Requests per minute and account; without a session or token, per client address
        rate_limit_requests: NonZeroU32 = "1200",
        /// Passwords that one process hashes at a time, which takes 19 MiB each; unset means one per core, but at most 4
        hash_concurrency: Option<NonZeroU32>,
        /// How many addresses the proxies in front of `web` append to `X-Forwarded-For`
        trusted_proxies: u16 = "0",
        /// Other sites whose pages may call the API, separated by commas: `https://app.example.com`; unset allows none. Browsers send the `SameSite=Lax` cookie only from hosts of the same registrable domain; other sites need a token
        cors_origins: Option<Origins>,
        /// Whether `/docs` and `/openapi.json` are served: `true` or `false`
        api_docs: bool = "true",
        /// Page that shows the mails, which the web page links to; for development and previews, where mails are not delivered
        mail_viewer_url: Option<Endpoint>,
    }
}

section! {
    /// What a deploy may turn off. The name of every flag begins with `FEATURE_`.
    pub struct Flags {
        /// Whether strangers may sign up: `true` or `false`; with `false`, only `admin account invite` makes accounts
        feature_sign_up: bool = "true",
    }
}

impl Flags {
    /// The prefix of every flag's name.
    pub const PREFIX: &str = "FEATURE_";
}

section! {
    /// How `worker` works.
    pub struct Jobs {
        /// Jobs that one worker runs at a time
        worker_concurrency: NonZeroU32 = "10",
        /// After how long without a heartbeat a worker's job goes to another worker, at least 10s; a heartbeat comes every third of it
        job_lease: Lease = "30s",
        /// Kinds of jobs that this worker runs, separated by commas; unset means all
        worker_kinds: Option<Names>,
    }
}

group! {
    /// What `web` reads.
    pub struct Web { database: Database, redis: Redis, storage: Storage, site: Site, http: Http, flags: Flags, tokens: Tokens, oidc: Oidc }
}

group! {
    /// What `worker` reads.
    pub struct Worker { database: Database, redis: Redis, storage: Storage, smtp: Smtp, site: Site, jobs: Jobs }
}

group! {
    /// What `clock` reads.
    pub struct Clock { database: Database }
}

group! {
    /// Every variable of every program.
    pub struct All { process: Process, web: Web, worker: Worker }
}
