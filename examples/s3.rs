//! An object store for development and tests: speaks S3, checks signatures, and keeps its objects in a folder.
//!
//!     s3 FOLDER [ADDRESS]
//!
//! The default address is 127.0.0.1:9000. If the port is taken, it uses a free one. The only bucket is `files`. The access
//! key's id and secret are both `development`.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::dto::AbortMultipartUploadInput;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Request, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The id of the only access key, and its secret.
const KEY: &str = "development";

/// The only bucket. It is a folder, so a test can remove the bucket by moving the folder.
const BUCKET: &str = "files";

/// Refuses requests without a key, and requests for a missing bucket, which the library would create.
struct Gate {
    folder: PathBuf,
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied));
        }
        match context.s3_path().get_bucket_name() {
            Some(bucket) if !self.folder.join(bucket).is_dir() => Err(s3_error!(NoSuchBucket)),
            _ => Ok(()),
        }
    }

    /// Responds to the abort of an unknown upload as S3 does. The library would respond as if it were another key's upload.
    async fn abort_multipart_upload(&self, request: &mut S3Request<AbortMultipartUploadInput>) -> S3Result<()> {
        let known = self.folder.join(format!(".upload-{}.json", request.input.upload_id)).exists();
        if known { Ok(()) } else { Err(s3_error!(NoSuchUpload)) }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("the folder for the objects is missing")?;
    std::fs::create_dir_all(format!("{folder}/{BUCKET}"))?;
    let files = FileSystem::new(&folder).map_err(|e| anyhow::anyhow!("{folder} cannot be used: {e:?}"))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(KEY, KEY));
    service.set_access(Gate { folder: folder.into() });
    let service = service.build();

    let listener = listen(arguments.next().as_deref().unwrap_or("127.0.0.1:9000")).await?;
    println!("keeps objects at http://{}", listener.local_addr()?);
    // The first process of a container has no default signal handlers.
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = terminate.recv() => return Ok(()),
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        };
        let service = service.clone();
        tokio::spawn(async move {
            // A client may disconnect at any time.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Listens on the address, or on a free port if its port is taken.
async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let address: SocketAddr = address.parse()?;
    match TcpListener::bind(address).await {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Ok(TcpListener::bind((address.ip(), 0)).await?),
        bound => Ok(bound?),
    }
}
