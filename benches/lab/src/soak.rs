//! A server under load for long, while its certificate is renewed, its policies change, and clients are refused: what
//! grows?
//!
//! Every second clients open tunnels and use some that live, one policy changes, and every fifth second the server gets another
//! certificate and its CRL changes. No tunnel of theirs may fail. Beside them a client that nothing admits is denied again
//! and again, and one that is admitted now and then is cut when a policy or the CRL takes that back. Memory, descriptors and
//! tasks are sampled every second; what they grow by is the slope of a line through the samples (least squares), after a
//! warm-up of a third. A slope counts as far as it is certain: less three times its standard error. At the end the load
//! goes, and everything it opened with it.

use std::time::Duration;

use tokio::time::Instant;

use crate::args::{Soak, say};
use crate::echo::Deployment;
use crate::processes::Process;
use crate::{BoxError, Done, machine};

/// One change a second, each undone by the next.
const CHANGES: [&str; 12] = [
    "deny",
    "allow",
    "attach",
    "detach",
    "move",
    "move away",
    "deny in the mesh",
    "allow in the mesh",
    "try",
    "leave off",
    "forbid",
    "permit",
];

/// Certificates and lists before anything is measured, more than the 256 that a member remembers: in a soak they come ten
/// thousand times as fast as in a mesh, and what is kept of them would grow for twenty minutes.
const RENEWALS: usize = 300;

/// In which all that the load had open is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Since the beginning, in seconds.
    at: f64,
    memory: f64,
    descriptors: f64,
    /// None where nobody counts them.
    tasks: Option<f64>,
}

/// Of a line through samples, per hour.
#[derive(Debug, Clone, Copy)]
struct Slope {
    of: f64,
    error: f64,
}

impl Slope {
    fn of(samples: &[Held], value: fn(&Held) -> f64) -> Self {
        let count = samples.len() as f64;
        let mean = |value: &dyn Fn(&Held) -> f64| samples.iter().map(value).sum::<f64>() / count;
        let (at, mid) = (mean(&|held| held.at), mean(&value));
        let spread: f64 = samples.iter().map(|held| (held.at - at).powi(2)).sum();
        let along = |held: &Held| (held.at - at) * (value(held) - mid);
        let slope = samples.iter().map(along).sum::<f64>() / spread;
        let beside = |held: &Held| (value(held) - mid - slope * (held.at - at)).powi(2);
        let rest: f64 = samples.iter().map(beside).sum();
        let error = (rest / (count - 2.0) / spread).sqrt();
        Self {
            of: slope * 3600.0,
            error: error * 3600.0,
        }
    }

    fn certainly(self) -> f64 {
        self.of - 3.0 * self.error
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what drives processes has no runtime"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

struct Loaded {
    clients: [Process; 2],
    refused: Process,
    /// How often a client was denied, and how many tunnels were cut.
    denied: usize,
    cut: usize,
    deployment: Deployment,
    begin: Instant,
}

impl Loaded {
    fn new(of: &Soak) -> Result<Self, BoxError> {
        let deployment = Deployment::start()?;
        let new = deployment.clients("new", of.rate, false)?;
        let kept = deployment.clients("kept", of.kept, true)?;
        let rate = of.refused.to_string();
        let refused = deployment.member("refused", &["refused", "--rate", &rate])?;
        Ok(Self {
            clients: [new, kept],
            refused,
            denied: 0,
            cut: 0,
            deployment,
            begin: Instant::now(),
        })
    }

    /// A second of load, with a change in it.
    fn second(&mut self, number: usize) -> Done {
        self.refused.tell("1000")?;
        // What the change is to cut is open.
        self.refused.line()?;
        for client in &mut self.clients {
            client.tell("1000")?;
        }
        self.deployment.ask(CHANGES[number % CHANGES.len()])?;
        if number.is_multiple_of(5) {
            self.renew(number / 5)?;
        }
        for client in &mut self.clients {
            let line = client.line()?;
            match line.rsplit_once(' ') {
                Some((_, "0")) => {}
                _ => return Err(format!("in second {number} some failed: {line}").into()),
            }
        }
        let line = self.refused.line()?;
        let figures: Result<Vec<usize>, _> = line.split(' ').take(3).map(str::parse).collect();
        let [denied, cut, 0] = figures?[..] else {
            return Err(format!("in second {number} some were not refused: {line}").into());
        };
        self.denied += denied;
        self.cut += cut;
        Ok(())
    }

    /// Another certificate for the server, and another list.
    fn renew(&mut self, number: usize) -> Done {
        let Deployment { root, folder, .. } = &self.deployment;
        root.write_member(folder.path(), "server")?;
        self.deployment.ask(["revoke", "restore"][number % 2])?;
        Ok(())
    }

    /// Of those that are refused no connection is left.
    fn leave(&mut self) -> Done {
        self.refused.tell("leave")?;
        self.refused.line()?;
        Ok(())
    }

    /// The server's, then the clients'.
    fn held(&mut self) -> Result<[Held; 4], BoxError> {
        let tasks = Some(self.deployment.ask("tasks")?.parse()?);
        let at = self.begin.elapsed().as_secs_f64();
        let of = |process: &Process, tasks| -> Result<Held, BoxError> {
            Ok(Held {
                at,
                memory: process.resident()?,
                descriptors: process.descriptors()?,
                tasks,
            })
        };
        let [new, kept] = &self.clients;
        let server = &self.deployment.server;
        let clients = [of(new, None)?, of(kept, None)?, of(&self.refused, None)?];
        let [new, kept, refused] = clients;
        Ok([of(server, tasks)?, new, kept, refused])
    }
}

pub(crate) fn run(of: &Soak) -> Done {
    machine::print();
    let mut loaded = Loaded::new(of)?;
    // What is made once is made, and the change of number 0 undone by that of 1.
    for number in 0..2 {
        loaded.second(number)?;
    }
    for number in 0..RENEWALS {
        loaded.renew(number)?;
        pause(Duration::from_millis(20));
    }
    loaded.leave()?;
    let mut samples = Vec::new();
    pause(Duration::from_secs(2));
    let idle = loaded.held()?;
    // Whatever the number, the policies are as they were at the end.
    let seconds = of.seconds.max(30).next_multiple_of(CHANGES.len());
    for number in 0..seconds {
        loaded.second(number)?;
        samples.push(loaded.held()?);
    }
    machine::print();
    let warm = &samples[samples.len() / 3..];
    say(&format!(
        "{seconds} s of {} new tunnels and {} bytes there and back a second, {} certificates, {seconds} changes, {} denied, {} cut; per hour, ± standard error",
        of.rate,
        of.kept,
        seconds / 5,
        loaded.denied,
        loaded.cut,
    ));
    let mut grown = Vec::new();
    if loaded.denied == 0 || loaded.cut == 0 {
        grown.push("nobody was denied, or nobody cut".to_owned());
    }
    for (index, name) in ["server", "new tunnels", "tunnels that live", "refused"]
        .into_iter()
        .enumerate()
    {
        let held: Vec<_> = warm.iter().map(|held| held[index]).collect();
        let memory = Slope::of(&held, |held| held.memory / 1e6);
        let descriptors = Slope::of(&held, |held| held.descriptors);
        let counted = held.iter().all(|held| held.tasks.is_some());
        let tasks = counted.then(|| Slope::of(&held, |held| held.tasks.unwrap_or_default()));
        let of_tasks = tasks.map_or("tasks not counted".to_owned(), |tasks| {
            format!("{:.2} ± {:.2} tasks", tasks.of, tasks.error)
        });
        say(&format!(
            "{name:<20}{:>8.1} MB at the end{:>10.2} ± {:.2} MB{:>10.2} ± {:.2} descriptors   {of_tasks}",
            held.last().map_or(f64::NAN, |held| held.memory / 1e6),
            memory.of,
            memory.error,
            descriptors.of,
            descriptors.error,
        ));
        for (what, slope, most) in [
            ("MB", Some(memory), of.memory),
            ("descriptors", Some(descriptors), 0.0),
            ("tasks", tasks, 0.0),
        ] {
            if let Some(slope) = slope
                && slope.certainly() > most
            {
                let certain = slope.certainly();
                grown.push(format!("{name}: at least {certain:.2} {what} more an hour"));
            }
        }
    }
    loaded.leave()?;
    let until = Instant::now() + PATIENCE;
    loop {
        let now = loaded.held()?;
        let more =
            |now: &Held, idle: &Held| now.descriptors > idle.descriptors || now.tasks > idle.tasks;
        if !now.iter().zip(&idle).any(|(now, idle)| more(now, idle)) {
            break;
        }
        if until <= Instant::now() {
            grown.push(format!("what was opened is not gone: {idle:?}, {now:?}"));
            break;
        }
        pause(Duration::from_millis(200));
    }
    match grown.is_empty() {
        true => Ok(()),
        false => Err(grown.join("; ").into()),
    }
}
