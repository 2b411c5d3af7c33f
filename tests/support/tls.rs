//! TLS: a certificate authority for one test, and servers with certificates that it has signed.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use uuid::Uuid;

use super::mail::Sink;
use super::postgres::Postgres;
use super::{Process, free_port};

/// Its certificate is for `localhost`, so it is invalid for 127.0.0.1.
pub struct Authority {
    folder: PathBuf,
    acceptor: TlsAcceptor,
}

impl Authority {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let (own_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Authorities need different names, or the error would be a wrong signature instead of an unknown issuer.
        authority.distinguished_name.push(DnType::CommonName, folder.display().to_string());
        let authority = authority.self_signed(&own_key).expect("a certificate");
        let server = CertificateParams::new(["localhost".to_owned()]).and_then(|server| server.signed_by(&key, &authority, &own_key));
        let server = server.expect("a certificate");
        for (name, text) in [("authority.pem", authority.pem()), ("server.pem", server.pem()), ("server.key", key.serialize_pem())] {
            std::fs::write(folder.join(name), text).expect("a file");
        }
        // Postgres rejects a key that others may read.
        std::fs::set_permissions(folder.join("server.key"), PermissionsExt::from_mode(0o600)).expect("a mode");
        let (chain, key) = (vec![server.into()], key.serialize_der().try_into().expect("a key"));
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a certificate and its key");
        Self { folder, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// The file for `SSL_CERT_FILE`.
    pub fn file(&self) -> String {
        self.path("authority.pem")
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A Postgres that offers TLS.
    pub async fn postgres(&self) -> Option<Postgres> {
        let option = |name: &str, file: &str| format!("{name}={}", self.path(file));
        let (certificate, key) = (option("ssl_cert_file", "server.pem"), option("ssl_key_file", "server.key"));
        Postgres::start_with(&["-c", "ssl=on", "-c", &certificate, "-c", &key]).await
    }

    /// A Redis that accepts only TLS, and its address.
    pub async fn redis(&self, password: &str) -> (Process, String) {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--bind", "127.0.0.1", "--save", "", "--tls-auth-clients", "no", "--requirepass", password]);
        let (certificate, key) = (self.path("server.pem"), self.path("server.key"));
        command.args(["--tls-port", &port.to_string(), "--tls-cert-file", &certificate, "--tls-key-file", &key]);
        let process = Process::spawn(command);
        process.line("Ready to accept connections", |line| line.contains("Ready to accept connections")).await;
        (process, format!("rediss://:{password}@localhost:{port}/0"))
    }

    /// A port that accepts mail for the sink over TLS only: from the first byte on, or after STARTTLS.
    pub async fn mail(&self, sink: &Sink, starttls: bool) -> u16 {
        self.before(sink.smtp_url.replace("smtp://", ""), starttls).await
    }

    /// A port that accepts only TLS and forwards to a server without TLS.
    pub async fn before(&self, target: String, starttls: bool) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let acceptor = self.acceptor.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, target) = (acceptor.clone(), target.clone());
                tokio::spawn(async move { pass(client, starttls, &acceptor, &target).await });
            }
        });
        port
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn pass(mut client: TcpStream, starttls: bool, acceptor: &TlsAcceptor, target: &str) -> std::io::Result<()> {
    if starttls {
        client = before_tls(client).await?;
    }
    let mut client = acceptor.accept(client).await?;
    let mut sink = BufReader::new(TcpStream::connect(target).await?);
    if starttls {
        // The client has been greeted already.
        sink.read_line(&mut String::new()).await?;
    }
    copy_bidirectional(&mut client, &mut sink).await.map(drop)
}

/// The server's side of RFC 3207, up to STARTTLS. Any other command closes the connection.
async fn before_tls(client: TcpStream) -> std::io::Result<TcpStream> {
    let mut client = BufReader::new(client);
    client.write_all(b"220 mail\r\n").await?;
    for (command, answer) in [("EHLO", "250-mail\r\n250 STARTTLS\r\n"), ("STARTTLS", "220 go ahead\r\n")] {
        let mut line = String::new();
        client.read_line(&mut line).await?;
        if !line.starts_with(command) {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        client.write_all(answer.as_bytes()).await?;
    }
    Ok(client.into_inner())
}
