//! Starts nginx, which ends with the test.

use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{eventually, reserved_port};

pub(crate) struct Nginx {
    pub(crate) port: u16,
    _process: Child,
    _folder: TempDir,
}

impl Nginx {
    /// Starts nginx with directives for the block `http`. The function gets the folder for files and the port to listen on.
    pub(crate) async fn start(http: impl FnOnce(&str, u16) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display().to_string();
        let port = reserved_port().port();
        let http = http(&at, port);
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
            events {{}}
            http {{
                access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
                uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
                {http}
            }}"
        );
        let path = folder.path().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let mut process = Command::new("nginx")
            .args(["-e", &format!("{at}/start.log"), "-p", &at, "-c"])
            .arg(path)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nginx must be installed");
        eventually(async || {
            assert!(process.try_wait().unwrap().is_none(), "nginx has ended");
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self { port, _process: process, _folder: folder }
    }
}
