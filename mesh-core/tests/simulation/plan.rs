//! What goes wrong in a run, and when: all of it follows from the seed.

use std::time::Duration;

use crate::world::{HOSTS, Mask};

/// A small generator of numbers (SplitMix64): the same from the same seed, on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn host(&mut self) -> usize {
        self.below(HOSTS.len() as u64) as usize
    }

    /// Two hosts that are not the same.
    fn pair(&mut self) -> (usize, usize) {
        let one = self.host();
        let other = (one + 1 + self.below(HOSTS.len() as u64 - 1) as usize) % HOSTS.len();
        (one, other)
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// Something that happens to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// What two hosts say to each other is lost, one way or both.
    Partition(usize, usize, bool),
    /// What they say is kept until the link is repaired.
    Hold(usize, usize),
    Repair(usize, usize),
    /// What they say takes so many milliseconds each way.
    Latency(usize, usize, u64),
    /// The process is gone, with all its connections.
    Crash(usize),
    /// It is there again, and knows nothing.
    Restart(usize),
    /// The workload drains, ends, and starts again.
    Drain(usize),
    /// Its workload records arrive.
    Workloads(usize),
    /// Its policy arrives, or another.
    Policy(usize, Mask),
    /// Its own record is no more.
    Forgotten(usize),
}

/// From then on everything is well again.
pub(crate) const HEALED: Duration = Duration::from_secs(4);

/// By then every mesh has noticed: a PING that nobody answers takes a second, a new connection another.
pub(crate) const RECOVERED: Duration = Duration::from_millis(6200);

/// The end of a run.
pub(crate) const END: Duration = Duration::from_millis(7500);

/// Events in order of time.
pub(crate) fn plan(seed: u64) -> Vec<(Duration, Event)> {
    let random = &mut Random::new(seed);
    let mut plan = Vec::new();
    for host in 0..HOSTS.len() {
        arrives(random, Duration::ZERO, host, &mut plan);
    }
    let faults = 4 + random.below(8);
    for _ in 0..faults {
        let at = random.millis(500, HEALED.as_millis() as u64 - 500);
        let lasts = (at + random.millis(20, 2200)).min(HEALED);
        let (one, other) = random.pair();
        match random.below(10) {
            0 | 1 => {
                let both = random.below(2) == 0;
                plan.push((at, Event::Partition(one, other, both)));
                plan.push((lasts, Event::Repair(one, other)));
            }
            2 => {
                plan.push((at, Event::Hold(one, other)));
                plan.push((lasts, Event::Repair(one, other)));
            }
            3 => plan.push((at, Event::Latency(one, other, 5 + random.below(400)))),
            4 | 5 => {
                plan.push((at, Event::Crash(one)));
                plan.push((lasts, Event::Restart(one)));
                arrives(random, lasts, one, &mut plan);
            }
            // Early enough to be over by then.
            6 => plan.push((at.min(HEALED.mul_f64(0.4)), Event::Drain(one))),
            7 => {
                plan.push((at, Event::Forgotten(one)));
                plan.push((lasts, Event::Workloads(one)));
            }
            _ => plan.push((at, Event::Policy(one, Mask::random(random)))),
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// The configuration of a host that has just started; its policy may be late.
fn arrives(random: &mut Random, from: Duration, host: usize, plan: &mut Vec<(Duration, Event)>) {
    let workloads = from + random.millis(1, 200);
    plan.push((workloads, Event::Workloads(host)));
    let late = random.millis(0, 300) * u32::from(random.below(2) == 0);
    plan.push((workloads + late, Event::Policy(host, Mask::random(random))));
}
