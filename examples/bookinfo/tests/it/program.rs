//! The program under test, with manifests and a CA of its own.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Longer than anything takes on a slow and busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The shipped manifests on other addresses, and a folder for the CA.
pub(crate) struct Stage {
    folder: TempDir,
    network: String,
}

impl Stage {
    /// `last` tells the stages of one run apart; the process id tells runs apart.
    pub(crate) fn new(last: u32) -> Self {
        let id = std::process::id();
        let network = format!("127.{}.{}", 64 + id % 64, (id / 64 % 32) * 8 + last);
        let stage = Self {
            folder: tempfile::tempdir().unwrap(),
            network,
        };
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/bookinfo.yaml");
        let shipped = std::fs::read_to_string(shipped).unwrap();
        let manifests = shipped
            .replace("127.0.0.1", &format!("{}.1", stage.network))
            .replace("127.0.1.", &format!("{}.", stage.network));
        stage.save(&manifests);
        stage
    }

    /// The address of the page, from the manifests.
    pub(crate) fn page(&self) -> String {
        format!("{}.1:9080", self.network)
    }

    pub(crate) fn manifests(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("bookinfo.yaml")).unwrap()
    }

    /// Saves as an editor does: whole, by renaming.
    pub(crate) fn save(&self, manifests: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, manifests).unwrap();
        std::fs::rename(&new, self.folder.path().join("bookinfo.yaml")).unwrap();
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Starts all services in one process.
    pub(crate) fn start_all(&self) -> Program {
        self.start(&["--admin", &self.admin()])
    }

    /// Where the mesh answers questions.
    pub(crate) fn admin(&self) -> String {
        format!("{}.1:15000", self.network)
    }

    /// Starts the program on this stage.
    pub(crate) fn start(&self, args: &[&str]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bookinfo"))
            .args(args)
            .arg("--file")
            .arg(self.folder.path().join("bookinfo.yaml"))
            .arg("--ca-dir")
            .arg(self.folder.path().join("ca"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let said = Arc::default();
        let mut hearing = JoinSet::new();
        hearing.spawn(listen(child.stdout.take().unwrap(), Arc::clone(&said)));
        hearing.spawn(listen(child.stderr.take().unwrap(), Arc::clone(&said)));
        Program {
            child,
            said,
            hearing,
        }
    }

    /// The page, as a plaintext client outside the mesh gets it; empty while nobody answers.
    pub(crate) async fn load(&self) -> String {
        let ask = async {
            let mut stream = TcpStream::connect(self.page()).await?;
            let request =
                "GET /productpage HTTP/1.1\r\nhost: productpage\r\nconnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = timeout(PATIENCE, ask).await;
        answer.expect("an answer in time").unwrap_or_default()
    }

    /// Loads the page until it holds.
    pub(crate) async fn page_that(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let loads = async {
            loop {
                last = self.load().await;
                if holds(&last) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let held = timeout(PATIENCE, loads).await.is_ok();
        assert!(held, "{what}; the last page was: {last}");
        last
    }
}

async fn listen(output: impl AsyncRead + Unpin, said: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push_str(&line);
        said.push('\n');
    }
}

/// The running program, killed when dropped.
pub(crate) struct Program {
    child: Child,
    said: Arc<Mutex<String>>,
    hearing: JoinSet<()>,
}

impl Program {
    /// All that it printed so far.
    pub(crate) fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }

    /// Waits until one line of its output has all of `parts`.
    pub(crate) async fn says(&mut self, parts: &[&str]) {
        let heard = async {
            loop {
                let said = self.said();
                if said
                    .lines()
                    .any(|line| parts.iter().all(|part| line.contains(part)))
                {
                    return;
                }
                let ended = self.child.try_wait().unwrap();
                assert!(ended.is_none(), "{ended:?} without {parts:?}: {said}");
                sleep(Duration::from_millis(20)).await;
            }
        };
        let heard = timeout(PATIENCE, heard).await.is_ok();
        assert!(heard, "no {parts:?} in: {}", self.said());
    }

    /// Presses Ctrl-C and waits for the end.
    pub(crate) async fn interrupt(&mut self) -> ExitStatus {
        let id = self.child.id().expect("still up");
        let kill = format!("kill -INT {id}");
        let sent = Command::new("sh").arg("-c").arg(kill).status().await;
        assert!(sent.unwrap().success());
        self.ended().await
    }

    /// Waits for the end, and for the last that it printed.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let end = async {
            let status = self.child.wait().await;
            while self.hearing.join_next().await.is_some() {}
            status
        };
        timeout(PATIENCE, end).await.expect("the end").unwrap()
    }
}
