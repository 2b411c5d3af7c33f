//! The object store: the same program that development uses, and what lies in it.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use uuid::Uuid;

use super::process::programs;
use super::{Deploy, Process, free_port};

/// The name of the one key, and the key itself.
pub const KEY: &str = "development";

/// A store of a test's own, which may take it away.
pub struct Store {
    pub process: Process,
    pub url: String,
    /// Where its objects lie: the bucket is a folder in it.
    pub folder: PathBuf,
    port: u16,
}

impl Store {
    pub async fn start() -> Self {
        let (port, folder) = (free_port(), std::env::temp_dir().join(format!("store-{}", Uuid::new_v4().simple())));
        let process = serve(port, &folder).await;
        Self { process, url: format!("http://127.0.0.1:{port}"), folder, port }
    }

    /// Starts it again after its end, with what it kept.
    pub async fn restart(&mut self) {
        self.process = serve(self.port, &self.folder).await;
    }

    /// A deploy whose files go there.
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
