//! Processes of a deployment, and what they cost.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::{BoxError, Done};

/// Of `/proc/<pid>/stat`: the kernel's USER_HZ, the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running process, killed when dropped.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    log: std::path::PathBuf,
}

impl Process {
    /// Runs `command` in a namespace, or where this process is. What it logs goes to `folder`.
    pub(crate) fn start(
        name: &'static str,
        namespace: Option<&str>,
        folder: &Path,
        command: &Command,
    ) -> Result<Self, BoxError> {
        let mut outer = match namespace {
            // It becomes the program: the process is the same.
            Some(namespace) => {
                let mut outer = Command::new("ip");
                outer.args(["netns", "exec", namespace]);
                outer.arg(command.get_program()).args(command.get_args());
                outer
            }
            None => {
                let mut outer = Command::new(command.get_program());
                outer.args(command.get_args());
                outer
            }
        };
        let log = folder.join(format!("{name}.log"));
        let file = fs::File::create(&log)?;
        outer.current_dir(folder).stderr(file);
        outer.stdin(Stdio::piped()).stdout(Stdio::piped());
        for (variable, value) in command.get_envs() {
            outer.env(variable, value.unwrap_or_default());
        }
        let mut child = outer
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        Ok(Self {
            name,
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
            log,
        })
    }

    /// A role of this program, in a namespace.
    pub(crate) fn role(
        name: &'static str,
        namespace: &str,
        folder: &Path,
        arguments: &[&str],
    ) -> Result<Self, BoxError> {
        Self::role_in(name, Some(namespace), folder, arguments)
    }

    /// A role of this program where it is.
    pub(crate) fn role_here(
        name: &'static str,
        folder: &Path,
        arguments: &[&str],
    ) -> Result<Self, BoxError> {
        Self::role_in(name, None, folder, arguments)
    }

    fn role_in(
        name: &'static str,
        namespace: Option<&str>,
        folder: &Path,
        arguments: &[&str],
    ) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        Self::ready(name, namespace, folder, &command)
    }

    /// The program `member`, in a namespace.
    pub(crate) fn member(
        name: &'static str,
        namespace: &str,
        folder: &Path,
        arguments: &[&str],
    ) -> Result<Self, BoxError> {
        let program = std::env::current_exe()?.with_file_name("member");
        if !program.exists() {
            let program = program.display();
            return Err(format!(
                "{program}: expected to be there: `cargo build --release -p lab` builds it"
            )
            .into());
        }
        let mut command = Command::new(program);
        command.args(arguments);
        Self::ready(name, Some(namespace), folder, &command)
    }

    fn ready(
        name: &'static str,
        namespace: Option<&str>,
        folder: &Path,
        command: &Command,
    ) -> Result<Self, BoxError> {
        let mut process = Self::start(name, namespace, folder, command)?;
        let line = process.line()?;
        if line == "ready" {
            Ok(process)
        } else {
            Err(format!("{name}: expected it to be ready, it said {line:?}").into())
        }
    }

    pub(crate) fn tell(&mut self, line: &str) -> Done {
        let stdin = self.stdin.as_mut().ok_or("it is not listened to")?;
        Ok(writeln!(stdin, "{line}")?)
    }

    /// The next line that it says.
    pub(crate) fn line(&mut self) -> Result<String, BoxError> {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().ok_or("it says nothing")?;
        if stdout.read_line(&mut line)? == 0 {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            return Err(format!("{} ended: {}", self.name, log.trim()).into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// For a peer that writes its log to standard output: nobody reads it.
    pub(crate) fn ignored(mut self) -> Self {
        if let Some(mut stdout) = self.stdout.take() {
            std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        }
        self
    }

    /// User and system time so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64, BoxError> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name is in parentheses and may hold anything.
        let fields = stat.rsplit_once(") ").ok_or("no stat")?.1;
        let ticks = fields.split(' ').skip(11).take(2);
        let mut sum = 0.0;
        for field in ticks {
            sum += field.parse::<f64>()?;
        }
        Ok(sum / TICKS_PER_SECOND)
    }

    /// Has all its threads run only where nobody else wants the core, or like others again. Takes root.
    pub(crate) fn aside(&self, aside: bool) -> Done {
        let policy = if aside { "--idle" } else { "--other" };
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let mut chrt = Command::new("chrt");
            let output = chrt
                .args([policy, "--pid", "0"])
                .arg(task?.file_name())
                .output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into());
            }
        }
        Ok(())
    }

    /// Has all its threads run on these cores only: a list as taskset(1) takes it.
    pub(crate) fn pin(&self, cores: &str) -> Done {
        let mut taskset = Command::new("taskset");
        let output = taskset
            .args(["--all-tasks", "--cpu-list", "--pid", cores])
            .arg(self.child.id().to_string())
            .output()?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into())
        }
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> Result<f64, BoxError> {
        self.status("VmRSS:")
    }

    /// The most that was ever resident, in bytes.
    pub(crate) fn peak(&self) -> Result<f64, BoxError> {
        self.status("VmHWM:")
    }

    /// How many descriptors are open.
    pub(crate) fn descriptors(&self) -> Result<f64, BoxError> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count() as f64)
    }

    /// From now on the most is counted anew.
    pub(crate) fn forget_peak(&self) -> Done {
        // What proc_pid_clear_refs(5) says of 5.
        Ok(fs::write(
            format!("/proc/{}/clear_refs", self.child.id()),
            "5",
        )?)
    }

    fn status(&self, name: &str) -> Result<f64, BoxError> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kibibytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kibibytes.ok_or("no such line")?.parse::<f64>()? * 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
