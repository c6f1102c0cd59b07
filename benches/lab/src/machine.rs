//! What the figures were taken on.

use std::fs;

use crate::args::say;

/// Prints it, with the load as it is now: figures of a busy machine prove nothing.
pub(crate) fn print() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let field = |name: &str| {
        let mut lines = cpus.lines().filter(|line| line.starts_with(name));
        let value = lines.next().and_then(|line| line.split_once(": "));
        value.map_or_else(|| "?".to_owned(), |(_, value)| value.to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    say(&format!(
        "{cores} cores ({}, {} of cache), Linux {}, load {}",
        field("model name"),
        field("cache size"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or("?"),
    ));
}
