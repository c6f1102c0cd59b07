//! Which certificate to fetch next: a state machine without I/O, for all identities of a process.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use mesh_authz::Identity;
use tokio::time::Instant;

use crate::identity::renew::{self, Backoff, Now, Renewal};

/// One stay of an identity in the schedule: what was fetched for an earlier one is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

/// Who comes first when more is due than may be fetched at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// There is a certificate, and time to renew it.
    Renewal,
    /// There is none, and nobody waits for it yet.
    First,
    /// Somebody waits, or the certificate is in the last tenth of its life.
    Demanded,
}

/// What to do now. After any but [`Step::Sleep`], ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Fetch a certificate, and report with [`Schedule::fetched`] or [`Schedule::failed`].
    Fetch(Ticket, Identity),
    /// The certificate of an identity has just expired, and no new one has come. Said once.
    Expired {
        identity: Identity,
        not_after: SystemTime,
        failures: u32,
    },
    /// Nothing to do before then, unless something is reported.
    Sleep(Option<Instant>),
}

/// How a fetch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may work the next time.
    Passing,
    /// The authority said no.
    Refused,
}

/// Bounds of a [`Schedule`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Fetches at a time.
    pub(super) fetches: usize,
    pub(super) backoff: Backoff,
}

/// Decides what is fetched when: a [`Renewal`] for each identity, and a queue before a bounded number
/// of fetches. Every call costs O(log n) for each identity that is due.
#[derive(Debug)]
pub(super) struct Schedule {
    limits: Limits,
    seed: u64,
    next: u64,
    tickets: HashMap<Identity, Ticket>,
    entries: BTreeMap<Ticket, Entry>,
    /// When to look at whom.
    timers: BTreeSet<(Instant, Ticket)>,
    /// Whose fetch is due: by priority, then in the order in which they became so.
    queue: BTreeSet<(Reverse<Priority>, u64, Ticket)>,
    flying: usize,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    renewal: Renewal,
    /// Whether somebody waits for the first certificate.
    demanded: bool,
    /// While there is a certificate: from when on its renewal is urgent.
    urgent: Option<SystemTime>,
    state: State,
    wake: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Resting,
    Queued(Priority, u64),
    Flying,
}

impl Schedule {
    pub(super) fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            seed,
            next: 0,
            tickets: HashMap::new(),
            entries: BTreeMap::new(),
            timers: BTreeSet::new(),
            queue: BTreeSet::new(),
            flying: 0,
        }
    }

    /// Begins to keep the certificate of an identity that is not kept yet; `demanded` if somebody waits
    /// for it.
    pub(super) fn want(&mut self, identity: &Identity, demanded: bool, now: Now) {
        if self.tickets.contains_key(identity) {
            return self.raise(identity, demanded, now);
        }
        let ticket = Ticket(self.number());
        self.tickets.insert(identity.clone(), ticket);
        let seed = self.seed ^ ticket.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let entry = Entry {
            identity: identity.clone(),
            renewal: Renewal::new(self.limits.backoff, seed, now),
            demanded,
            urgent: None,
            state: State::Resting,
            wake: now.monotonic,
        };
        self.entries.insert(ticket, entry);
        self.timers.insert((now.monotonic, ticket));
    }

    /// Says that somebody waits for an identity, if it is kept.
    pub(super) fn raise(&mut self, identity: &Identity, demanded: bool, now: Now) {
        if demanded && let Some(ticket) = self.tickets.get(identity).copied() {
            self.entry(ticket).demanded = true;
            self.requeue(ticket, now);
        }
    }

    /// Whose ticket it is; `None` if it was forgotten.
    pub(super) fn identity(&self, ticket: Ticket) -> Option<Identity> {
        Some(self.entries.get(&ticket)?.identity.clone())
    }

    /// Forgets an identity. Its fetch may be dropped if it is in flight.
    pub(super) fn forget(&mut self, identity: &Identity) {
        let Some(ticket) = self.tickets.remove(identity) else {
            return;
        };
        let Some(entry) = self.entries.remove(&ticket) else {
            return;
        };
        self.timers.remove(&(entry.wake, ticket));
        match entry.state {
            State::Resting => {}
            State::Queued(priority, number) => {
                self.queue.remove(&(Reverse(priority), number, ticket));
            }
            State::Flying => self.flying -= 1,
        }
    }

    /// Says what to do now.
    pub(super) fn step(&mut self, now: Now) -> Step {
        while let Some((wake, ticket)) = self.timers.first().copied() {
            if wake > now.monotonic {
                break;
            }
            self.timers.pop_first();
            let entry = self.entry(ticket);
            match entry.renewal.step(now) {
                renew::Step::Fetch => {
                    self.set_timer(ticket, now.monotonic);
                    let number = self.number();
                    let priority = self.entry(ticket).priority(now);
                    self.entry(ticket).state = State::Queued(priority, number);
                    self.queue.insert((Reverse(priority), number, ticket));
                }
                renew::Step::Expired(not_after) => {
                    entry.urgent = None;
                    // It was in use.
                    entry.demanded = true;
                    let expired = Step::Expired {
                        identity: entry.identity.clone(),
                        not_after,
                        failures: entry.renewal.failures(),
                    };
                    self.set_timer(ticket, now.monotonic);
                    self.requeue(ticket, now);
                    return expired;
                }
                renew::Step::Sleep(until) => {
                    self.set_timer(ticket, until);
                    self.requeue(ticket, now);
                }
            }
        }
        if self.flying < self.limits.fetches
            && let Some((_, _, ticket)) = self.queue.pop_first()
        {
            self.flying += 1;
            let entry = self.entry(ticket);
            entry.state = State::Flying;
            return Step::Fetch(ticket, entry.identity.clone());
        }
        Step::Sleep(self.timers.first().map(|(wake, _)| *wake))
    }

    /// Reports a certificate that came. `None` if nobody wants it any more.
    pub(super) fn fetched(
        &mut self,
        ticket: Ticket,
        now: Now,
        validity: (SystemTime, SystemTime),
    ) -> Option<Identity> {
        self.landed(ticket)?;
        Some(self.hold(ticket, now, validity))
    }

    /// Reports that no usable certificate came. `None` if nobody wants it any more.
    pub(super) fn failed(
        &mut self,
        ticket: Ticket,
        now: Now,
        failure: Failure,
    ) -> Option<Identity> {
        self.landed(ticket)?;
        let entry = self.entry(ticket);
        match failure {
            Failure::Passing => entry.renewal.failed(now),
            Failure::Refused => entry.renewal.refused(now),
        }
        let identity = entry.identity.clone();
        self.look_again(ticket, now);
        Some(identity)
    }

    /// Reports a certificate that is here without having been fetched, for an identity that has none.
    pub(super) fn restored(
        &mut self,
        identity: &Identity,
        now: Now,
        validity: (SystemTime, SystemTime),
    ) {
        if let Some(ticket) = self.tickets.get(identity).copied()
            && self.entry(ticket).state == State::Resting
        {
            self.hold(ticket, now, validity);
        }
    }

    /// Says that the certificate which was restored is of no use to others, and so is to be replaced at once.
    pub(super) fn replace(&mut self, identity: &Identity, now: Now) {
        if let Some(ticket) = self.tickets.get(identity).copied() {
            let entry = self.entry(ticket);
            entry.renewal.replace(now);
            entry.urgent = Some(now.wall);
            self.look_again(ticket, now);
        }
    }

    /// Brings forward the next try of all whose last one failed: the cause may be gone. They are
    /// spread over one base delay.
    pub(super) fn hurry(&mut self, now: Now) {
        let spread = self.limits.backoff.base;
        let tickets: Vec<_> = self.entries.keys().copied().collect();
        for ticket in tickets {
            self.entry(ticket).renewal.hurry(now, spread);
            self.look_again(ticket, now);
        }
    }

    fn hold(&mut self, ticket: Ticket, now: Now, validity: (SystemTime, SystemTime)) -> Identity {
        let (not_before, not_after) = validity;
        let entry = self.entry(ticket);
        entry.renewal.fetched(now, not_before, not_after);
        let life = not_after.duration_since(not_before).unwrap_or_default();
        entry.urgent = Some(not_after - life / 10);
        // Whoever waited has it now.
        entry.demanded = false;
        let identity = entry.identity.clone();
        self.look_again(ticket, now);
        identity
    }

    /// Notes that a fetch is over.
    fn landed(&mut self, ticket: Ticket) -> Option<()> {
        let entry = self.entries.get_mut(&ticket)?;
        debug_assert_eq!(entry.state, State::Flying, "only what was fetched comes");
        entry.state = State::Resting;
        self.flying -= 1;
        Some(())
    }

    fn look_again(&mut self, ticket: Ticket, now: Now) {
        let wake = self.entry(ticket).wake;
        self.timers.remove(&(wake, ticket));
        self.set_timer(ticket, now.monotonic);
    }

    fn set_timer(&mut self, ticket: Ticket, wake: Instant) {
        self.entry(ticket).wake = wake;
        self.timers.insert((wake, ticket));
    }

    /// Puts what is queued where its priority belongs now.
    fn requeue(&mut self, ticket: Ticket, now: Now) {
        let entry = self.entry(ticket);
        let State::Queued(old, number) = entry.state else {
            return;
        };
        let new = entry.priority(now);
        if old != new {
            entry.state = State::Queued(new, number);
            self.queue.remove(&(Reverse(old), number, ticket));
            self.queue.insert((Reverse(new), number, ticket));
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn entry(&mut self, ticket: Ticket) -> &mut Entry {
        // Timers, queue and `tickets` hold tickets of entries only.
        self.entries.get_mut(&ticket).expect("an entry")
    }
}

impl Entry {
    fn priority(&self, now: Now) -> Priority {
        match self.urgent {
            Some(urgent) if now.wall < urgent => Priority::Renewal,
            Some(_) => Priority::Demanded,
            None if self.demanded => Priority::Demanded,
            None => Priority::First,
        }
    }
}
