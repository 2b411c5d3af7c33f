//! The object store, the same program as in development, and its objects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::process::Command;
use uuid::Uuid;

use super::process::programs;
use super::{Deploy, Process, free_port};

/// The id of the only access key, and its secret.
pub const KEY: &str = "development";

/// A store that belongs to one test, which may stop it.
pub struct Store {
    pub process: Process,
    pub url: String,
    /// Holds the objects. Each bucket is a folder in it.
    pub folder: PathBuf,
    port: u16,
}

impl Store {
    pub async fn start() -> Self {
        let (port, folder) = (free_port(), std::env::temp_dir().join(format!("store-{}", Uuid::new_v4().simple())));
        let process = serve(port, &folder).await;
        Self { process, url: format!("http://127.0.0.1:{port}"), folder, port }
    }

    /// Starts it again after it exited, with the objects that it had.
    pub async fn restart(&mut self) {
        self.process = serve(self.port, &self.folder).await;
    }

    /// A copy of the deploy that uses this store.
    pub fn of(&self, deploy: &Deploy) -> Deploy {
        deploy.clone_with("AWS_ENDPOINT_URL_S3", &self.url)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn serve(port: u16, folder: &Path) -> Process {
    let mut command = Command::new(programs().join("examples/s3"));
    command.arg(folder).arg(format!("127.0.0.1:{port}"));
    let process = Process::spawn(command);
    process.line("keeps objects", |line| line.starts_with("keeps objects at ")).await;
    process
}

/// A client of the deploy's store that does not use the code under test.
pub fn client(deploy: &Deploy) -> AmazonS3 {
    let builder = AmazonS3Builder::new().with_bucket_name("files").with_access_key_id(KEY).with_secret_access_key(KEY);
    builder.with_endpoint(&deploy.environment["AWS_ENDPOINT_URL_S3"]).with_allow_http(true).build().expect("a client")
}

/// The deploy's folder in the bucket.
fn folder(deploy: &Deploy) -> object_store::path::Path {
    deploy.environment["STORAGE_URL"].strip_prefix("s3://files/").expect("a folder").into()
}

/// The size of each of the deploy's objects, by key, without the one that names the owner.
pub async fn objects(deploy: &Deploy) -> BTreeMap<String, u64> {
    let folder = folder(deploy);
    let objects: Vec<_> = client(deploy).list(Some(&folder)).try_collect().await.expect("a listing");
    let objects = objects.into_iter().filter(|object| object.location.filename() != Some("owner"));
    let key = |whole: &str| whole.strip_prefix(folder.as_ref()).expect("a key in the folder").trim_start_matches('/').to_owned();
    objects.map(|object| (key(object.location.as_ref()), object.size)).collect()
}

/// Writes an object without the programs' knowledge.
pub async fn put(deploy: &Deploy, key: &str, content: &'static [u8]) {
    let path = format!("{}/{key}", folder(deploy)).as_str().into();
    client(deploy).put(&path, content.into()).await.expect("it is stored");
}
