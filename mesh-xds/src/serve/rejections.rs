//! Callers that were turned away: who, why and how often, for pages and the log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use mesh_authz::Identity;
use tokio::time::Instant;

/// How many are remembered, the last ones.
const MAX: usize = 100;

/// Characters of a reason, in which there may be what the caller said.
const MAX_REASON: usize = 512;

/// For how long the same of the same caller is not logged again, and the time in which so many lines are.
const QUIET: Duration = Duration::from_secs(10);
const LINES: usize = 20;

/// Of these so many for the reasons of one address, which may be as many as it likes.
const LINES_EACH: usize = 5;

/// That a caller was turned away, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    from: Option<IpAddr>,
    identity: Option<Identity>,
    reason: String,
    times: u64,
    last: Instant,
    logged: Option<Instant>,
}

impl Rejection {
    /// Where it called from, if whoever accepted its connection said so: see [`Remote`](super::Remote).
    pub fn address(&self) -> Option<IpAddr> {
        self.from
    }

    /// Who it proved to be, if it did.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Why, as it was told; up to 512 characters.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// How often that was so.
    pub fn times(&self) -> u64 {
        self.times
    }

    /// How long ago it was so last.
    pub fn age(&self) -> Duration {
        self.last.elapsed()
    }
}

/// As much of a reason as is kept and logged.
pub(super) fn shortened(reason: &str) -> &str {
    let end = reason.char_indices().nth(MAX_REASON);
    end.map_or(reason, |(end, _)| &reason[..end])
}

/// What is to be logged of a rejection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It, which happened so often so far.
    This(u64),
    /// It, and that others are not logged for a while.
    Last(u64),
    None,
}

/// The last ones, the one that happened last at the end.
#[derive(Default)]
pub(super) struct Rejections {
    list: Vec<Rejection>,
    since: Option<Instant>,
    lines: usize,
}

impl Rejections {
    pub(super) fn list(&self) -> &[Rejection] {
        &self.list
    }

    pub(super) fn note(
        &mut self,
        from: Option<IpAddr>,
        identity: Option<&Identity>,
        reason: &str,
        now: Instant,
    ) -> Line {
        let is_it = |one: &Rejection| {
            one.from == from && one.identity.as_ref() == identity && one.reason == reason
        };
        let mut one = match self.list.iter().position(is_it) {
            Some(at) => self.list.remove(at),
            None => Rejection {
                from,
                identity: identity.cloned(),
                reason: reason.to_owned(),
                times: 0,
                last: now,
                logged: None,
            },
        };
        one.times += 1;
        one.last = now;
        let times = one.times;
        let is_new = one.logged.is_none_or(|logged| now - logged >= QUIET);
        let from_there = |one: &&Rejection| {
            one.from == from && one.logged.is_some_and(|logged| now - logged < QUIET)
        };
        let logged = self.list.iter().filter(from_there).count();
        let line = match is_new && logged < LINES_EACH {
            true => self.line(times, now),
            false => Line::None,
        };
        if line != Line::None {
            one.logged = Some(now);
        }
        if self.list.len() >= MAX {
            self.list.remove(self.dispensable());
        }
        self.list.push(one);
        line
    }

    /// The oldest of the address that has the most: nobody drives out what others were told.
    fn dispensable(&self) -> usize {
        let mut most = HashMap::<_, (usize, usize)>::new();
        for (at, one) in self.list.iter().enumerate() {
            most.entry(one.from).or_insert((0, at)).0 += 1;
        }
        let most = most.into_values().max_by_key(|(count, _)| *count);
        most.map_or(0, |(_, oldest)| oldest)
    }

    /// Reasons may differ each time: there is a bound for all of them.
    fn line(&mut self, times: u64, now: Instant) -> Line {
        if self.since.is_none_or(|since| now - since >= QUIET) {
            self.since = Some(now);
            self.lines = 0;
        }
        self.lines += 1;
        match self.lines {
            LINES => Line::Last(times),
            lines if lines > LINES => Line::None,
            _ => Line::This(times),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_insists_is_logged_now_and_then_and_counted_always() {
        let mut rejections = Rejections::default();
        let mut note = |from, reason: &str| rejections.note(from, None, reason, Instant::now());
        assert_eq!(note(ONE, "no token"), Line::This(1));
        for _ in 0..5 {
            assert_eq!(note(ONE, "no token"), Line::None);
        }
        assert_eq!(note(None, "no token"), Line::This(1), "another caller");
        assert_eq!(note(ONE, "expired"), Line::This(1), "another reason");
        tokio::time::advance(QUIET).await;
        assert_eq!(note(ONE, "no token"), Line::This(7));
        assert_eq!(note(ONE, "no token"), Line::None);
        let told = rejections.list();
        let told: Vec<_> = told.iter().map(|one| (one.reason(), one.times())).collect();
        assert_eq!(told, [("no token", 1), ("expired", 1), ("no token", 8)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_another_thing_each_time_floods_neither_log_nor_memory() {
        let mut rejections = Rejections::default();
        let mut number = 0;
        for _ in 0..2 {
            let mut flood = || {
                number += 1;
                let reason = format!("{number}{}", "x".repeat(10_000));
                rejections.note(ONE, None, shortened(&reason), Instant::now())
            };
            let lines: Vec<_> = (0..1000).map(|_| flood()).collect();
            let logged = lines.iter().filter(|line| **line != Line::None).count();
            // Entries that were logged make room for later ones, whose lines are then bounded by all of them.
            assert!((LINES_EACH..=LINES).contains(&logged), "{logged}");
            tokio::time::advance(QUIET).await;
        }
        assert_eq!(rejections.list().len(), MAX);
        let last = rejections.list().last().unwrap();
        assert!(last.reason().starts_with("2000x"));
        assert_eq!(last.reason().chars().count(), MAX_REASON);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_hides_no_other() {
        let mut rejections = Rejections::default();
        let other = Some(IpAddr::from([192, 0, 2, 2]));
        rejections.note(other, None, "the token has expired", Instant::now());
        for number in 0..2 * MAX {
            let reason = format!("alert {number}");
            rejections.note(ONE, None, &reason, Instant::now());
        }
        assert_eq!(rejections.list()[0].reason(), "the token has expired");
        let line = rejections.note(other, None, "no such group", Instant::now());
        assert_ne!(line, Line::None, "it is logged");
    }
}
