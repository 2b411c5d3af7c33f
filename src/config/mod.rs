//! Every environment variable that a program reads (factor III: config).
//!
//! A section is one plain struct that `envy` fills; a field is a variable, its name in lower case, its doc comment
//! the variable's meaning, unit and default. Knows nothing of what the settings are for.

use std::num::NonZeroU32;
use std::time::Duration;

use lettre::message::Mailbox;
use secrecy::SecretString;

mod database_url;
mod reading;
mod settings;
mod smtp_url;
mod storage_url;

pub use database_url::DatabaseUrl;
pub use reading::{Env, Problems, Section, Setting, Variable, read};
use reading::{group, section};
pub use settings::{
    CertificateFile, Endpoint, Exporter, Lasting, Lease, LogFilter, LogFormat, Names, Origins, Protocol, PublicUrl, RedisUrl, Sampler,
    Share, Size,
};
pub use smtp_url::{SmtpServer, SmtpTls, SmtpUrl};
pub use storage_url::{Scheme, StorageUrl};

section! {
    /// What every long-running process type reads.
    pub struct Process {
        /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or filter directives such as `info,sqlx=warn`
        log_level: LogFilter = "info",
        /// `json`, one object a line, or `pretty`, for people
        log_format: LogFormat = "json",
        /// The release's id, as the platform counts it; shown by `/version` and on every log line
        release_version: Option<String>,
        /// Name of this process in the log; Heroku sets it
        dyno: Option<String>,
        /// Name of this process in the log where `DYNO` is unset; most platforms set it
        hostname: Option<String>,
        /// Port of a second listener with `/metrics`, `/livez` and `/readyz`; unset opens none
        metrics_port: Option<u16>,
        /// File with the certificates of a private authority, in place of the system's: for TLS to Postgres, Redis, the mail server and the collector
        ssl_cert_file: Option<CertificateFile>,
        /// How long requests and jobs in flight may finish after SIGTERM
        drain_timeout: Duration = "25s",
        /// OpenTelemetry collector that takes traces over HTTP or HTTPS: `http://collector:4318`; unset sends none
        otel_exporter_otlp_endpoint: Option<Endpoint>,
        /// The whole address that takes traces, path and all, in place of the collector's
        otel_exporter_otlp_traces_endpoint: Option<Endpoint>,
        /// How traces are sent: `http/protobuf`
        otel_exporter_otlp_protocol: Option<Protocol>,
        /// How traces are sent, in place of the one for all
        otel_exporter_otlp_traces_protocol: Option<Protocol>,
        /// Where traces are sent: `otlp` or `none`
        otel_traces_exporter: Exporter = "otlp",
        /// `true` sends no traces
        otel_sdk_disabled: bool = "false",
        /// Headers for the collector, such as its key: `name=value,name=value`
        otel_exporter_otlp_headers: Option<SecretString>,
        /// Name of the service, in the log, in traces and at `/version`: tells two services in one log store apart
        otel_service_name: String = "app",
        /// More about this deploy in traces: `name=value,name=value`
        otel_resource_attributes: Option<String>,
        /// Which traces are sent: `always_on`, `always_off`, `traceidratio`, or one of these after `parentbased_`
        otel_traces_sampler: Option<Sampler>,
        /// The share of traces that `traceidratio` sends, from 0 to 1
        otel_traces_sampler_arg: Option<Share>,
        /// Milliseconds that spans wait to be sent together
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
        /// Postgres database: `postgres://user:password@host:5432/name`
        database_url: DatabaseUrl,
        /// Connections to Postgres that one process may hold, and one more for its probes; a worker holds another, to hear of new jobs
        database_pool_size: NonZeroU32 = "10",
    }
}

section! {
    /// The Redis server that keeps the sessions.
    pub struct Redis {
        /// Redis: `redis://:password@host:6379/0`, or `rediss://` for TLS
        redis_url: RedisUrl,
        /// Connections to Redis that one process may hold; requests share them
        redis_pool_size: NonZeroU32 = "4",
    }
}

section! {
    /// The mail server.
    pub struct Smtp {
        /// Mail server: `smtp://host:25`, `smtps://user:password@host`, or `smtp://host:587?tls=required`; `tls` may be `opportunistic` or `none` too, and is `required` where there is a password and the host is another
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
        /// Address at which people reach the object store, where it is another than the programs': `https://files.example.com`
        storage_public_url: Option<Endpoint>,
        /// Address of the object store where it is not Amazon's: `https://fly.storage.tigris.dev`
        aws_endpoint_url_s3: Option<Endpoint>,
        /// Region of the bucket
        aws_region: String = "us-east-1",
        /// Name of the key for the object store; unset asks the platform for the credentials of this workload
        aws_access_key_id: Option<SecretString>,
        /// The key for the object store
        aws_secret_access_key: Option<SecretString>,
        /// Token of a key that lasts for a while
        aws_session_token: Option<SecretString>,
        /// Role that this workload takes on at Amazon; platforms with workload identity set it
        aws_role_arn: Option<String>,
        /// File that holds this workload's identity, and is read again as it changes; platforms with workload identity set it
        aws_web_identity_token_file: Option<String>,
        /// Where a container asks for its credentials; Amazon ECS sets it
        aws_container_credentials_relative_uri: Option<String>,
        /// Where a container asks for its credentials; Amazon EKS sets it
        aws_container_credentials_full_uri: Option<Endpoint>,
        /// File that holds what a container asks with; Amazon EKS sets it
        aws_container_authorization_token_file: Option<String>,
        /// File with the key of a service account at Google, for `gs://bucket`; unset asks the platform for this workload's credentials
        google_application_credentials: Option<String>,
        /// Storage account at Azure, for `az://container`
        azure_storage_account_name: Option<String>,
        /// Key of the storage account at Azure
        azure_storage_account_key: Option<SecretString>,
        /// Size of the largest file, at most 48GiB
        file_size_limit: Size = "100MiB",
        /// What the files of one account may take together
        file_quota: Size = "1GiB",
    }
}

section! {
    /// How people reach this deploy.
    pub struct Site {
        /// Canonical address of this deploy, for links, cookies and the origin check: `https://example.com`; `https` makes cookies `Secure`
        public_url: PublicUrl,
    }
}

section! {
    /// How `web` serves.
    pub struct Http {
        /// Port that `web` listens on, on all interfaces
        port: u16 = "8080",
        /// A session's life after its last use
        session_ttl: Lasting = "14d",
        /// A session's life in all
        session_max_age: Lasting = "90d",
        /// A request's time, after which it gets 503
        request_timeout: Lasting = "10s",
        /// How long `web` keeps accepting after SIGTERM while `/readyz` already says no
        drain_delay: Duration = "0s",
        /// Log-ins, sign-ups, resets and other requests that try a password or send a mail, a minute, by client address
        rate_limit_login: NonZeroU32 = "10",
        /// Requests a minute, by account; by client address for who has neither session nor token
        rate_limit_requests: NonZeroU32 = "1200",
        /// Passwords that one process hashes at a time, with 33 MiB for each; unset means as many as it has cores, but at most 4
        hash_concurrency: Option<NonZeroU32>,
        /// How many proxies stand in front, each of which adds the address it was called from to `X-Forwarded-For`
        trusted_proxies: u16 = "0",
        /// Other sites whose pages may call the API, separated by commas: `https://app.example.com`; unset allows none. The cookie is `SameSite=Lax`, so it comes along only from hosts of the same registrable domain; others need a token
        cors_origins: Option<Origins>,
        /// Whether `/docs` and `/openapi.json` are served: `true` or `false`
        api_docs: bool = "true",
    }
}

section! {
    /// How `worker` works.
    pub struct Jobs {
        /// Jobs that one worker runs at a time
        worker_concurrency: NonZeroU32 = "10",
        /// How long a claimed job is a worker's own without a heartbeat, 10s or longer; there is one every third of it
        job_lease: Lease = "30s",
        /// Kinds of jobs that this worker runs, separated by commas; unset means all
        worker_kinds: Option<Names>,
    }
}

group! {
    /// What `web` reads.
    pub struct Web { database: Database, redis: Redis, storage: Storage, site: Site, http: Http }
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
