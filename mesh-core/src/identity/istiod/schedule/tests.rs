use std::time::Duration;

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn limits(fetches: usize) -> Limits {
    Limits {
        fetches,
        backoff: Backoff {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(60),
        },
    }
}

fn identity(number: u8) -> Identity {
    Identity::new("cluster.local", "default", &format!("sa-{number}")).unwrap()
}

fn begin() -> Now {
    Now {
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        monotonic: Instant::now(),
    }
}

fn pass(now: &mut Now, time: Duration) {
    now.wall += time;
    now.monotonic += time;
}

/// What is fetched now, until there is nothing to do.
fn fetches(schedule: &mut Schedule, now: Now) -> Vec<(Ticket, Identity)> {
    let mut found = Vec::new();
    loop {
        match schedule.step(now) {
            Step::Fetch(ticket, identity) => found.push((ticket, identity)),
            Step::Expired { .. } => {}
            Step::Sleep(_) => return found,
        }
    }
}

fn names(fetches: &[(Ticket, Identity)]) -> Vec<&Identity> {
    fetches.iter().map(|(_, identity)| identity).collect()
}

fn life(now: Now, length: Duration) -> (SystemTime, SystemTime) {
    (now.wall, now.wall + length)
}

#[test]
fn demanded_comes_before_first_and_first_before_renewals() {
    let mut now = begin();
    let mut schedule = Schedule::new(limits(1), 1);
    schedule.want(&identity(0), true, now);
    let renewed = fetches(&mut schedule, now);
    schedule
        .fetched(renewed[0].0, now, life(now, 24 * HOUR))
        .unwrap();
    pass(&mut now, 14 * HOUR);
    assert_eq!(
        fetches(&mut schedule, now).len(),
        1,
        "its renewal takes the one place"
    );

    // Zero's renewal is in flight; these queue behind it in another order than they will go.
    for (number, demanded) in [(1, false), (2, false), (3, true), (4, true)] {
        schedule.want(&identity(number), demanded, now);
    }
    assert!(fetches(&mut schedule, now).is_empty(), "one place");
    schedule.want(&identity(2), true, now);
    let ticket = schedule.tickets[&identity(0)];
    schedule.failed(ticket, now, Failure::Passing).unwrap();
    pass(&mut now, Duration::from_secs(60));
    let mut order = Vec::new();
    for _ in 0..5 {
        let next = fetches(&mut schedule, now);
        assert_eq!(next.len(), 1);
        order.push(next[0].1.clone());
        schedule
            .fetched(next[0].0, now, life(now, 24 * HOUR))
            .unwrap();
    }
    assert_eq!(order, [2, 3, 4, 1, 0].map(identity));
}

#[test]
fn a_renewal_in_the_last_tenth_of_its_life_does_not_wait_for_newcomers() {
    let mut now = begin();
    let mut schedule = Schedule::new(limits(1), 1);
    schedule.want(&identity(0), false, now);
    let first = fetches(&mut schedule, now);
    schedule.fetched(first[0].0, now, life(now, HOUR)).unwrap();
    pass(&mut now, HOUR * 95 / 100);
    for number in 1..5 {
        schedule.want(&identity(number), number > 2, now);
    }
    let next = fetches(&mut schedule, now);
    assert_eq!(names(&next), [&identity(0)]);
}

#[test]
fn as_many_are_fetched_at_a_time_as_permitted_and_each_once() {
    let now = begin();
    let mut schedule = Schedule::new(limits(8), 1);
    for number in 0..20 {
        schedule.want(&identity(number), true, now);
        schedule.want(&identity(number), true, now);
    }
    let mut flying = fetches(&mut schedule, now);
    assert_eq!(flying.len(), 8);
    let mut fetched = 0;
    while let Some((ticket, _)) = flying.pop() {
        schedule.fetched(ticket, now, life(now, HOUR)).unwrap();
        fetched += 1;
        flying.extend(fetches(&mut schedule, now));
        assert!(flying.len() <= 8);
    }
    assert_eq!(fetched, 20);
}

#[test]
fn what_is_forgotten_frees_its_place_and_its_fetch_is_nobodys() {
    let now = begin();
    let mut schedule = Schedule::new(limits(1), 1);
    schedule.want(&identity(0), true, now);
    let old = fetches(&mut schedule, now)[0].0;
    schedule.forget(&identity(0));
    schedule.want(&identity(0), true, now);
    let new = fetches(&mut schedule, now);
    assert_eq!(names(&new), [&identity(0)]);
    assert_eq!(schedule.fetched(old, now, life(now, HOUR)), None);
    assert_eq!(schedule.failed(old, now, Failure::Passing), None);
    assert_eq!(
        schedule.fetched(new[0].0, now, life(now, HOUR)),
        Some(identity(0))
    );
}

#[test]
fn who_was_refused_waits_long_unless_something_changes() {
    let mut now = begin();
    let mut schedule = Schedule::new(limits(1), 1);
    schedule.want(&identity(0), true, now);
    let ticket = fetches(&mut schedule, now)[0].0;
    schedule.failed(ticket, now, Failure::Refused).unwrap();
    pass(&mut now, Duration::from_secs(29));
    assert!(fetches(&mut schedule, now).is_empty());
    schedule.hurry(now);
    pass(&mut now, Duration::from_secs(1));
    assert_eq!(fetches(&mut schedule, now).len(), 1);

    // The failures that follow begin to be short again only after a success.
    schedule.failed(ticket, now, Failure::Refused).unwrap();
    pass(&mut now, Duration::from_secs(60));
    assert_eq!(fetches(&mut schedule, now).len(), 1);
    schedule.fetched(ticket, now, life(now, HOUR)).unwrap();
    pass(&mut now, HOUR * 6 / 10);
    assert_eq!(fetches(&mut schedule, now).len(), 1);
    schedule.failed(ticket, now, Failure::Passing).unwrap();
    pass(&mut now, Duration::from_secs(1));
    assert_eq!(fetches(&mut schedule, now).len(), 1);
}

#[test]
fn what_was_restored_is_renewed_as_if_it_had_been_fetched_then() {
    let mut now = begin();
    let mut schedule = Schedule::new(limits(1), 1);
    schedule.want(&identity(0), true, now);
    let (not_before, not_after) = (now.wall - 8 * HOUR, now.wall + 16 * HOUR);
    schedule.restored(&identity(0), now, (not_before, not_after));
    assert!(fetches(&mut schedule, now).is_empty());
    pass(&mut now, 2 * HOUR);
    assert!(fetches(&mut schedule, now).is_empty(), "10 of 24 hours");
    pass(&mut now, 4 * HOUR);
    assert_eq!(fetches(&mut schedule, now).len(), 1, "14 of 24 hours");
}

/// The same decisions without an index: everything is searched for, each time.
struct Naive {
    limits: Limits,
    seed: u64,
    next: u64,
    entries: Vec<NaiveEntry>,
}

struct NaiveEntry {
    number: u64,
    identity: Identity,
    renewal: Renewal,
    wake: Instant,
    demanded: bool,
    urgent: Option<SystemTime>,
    queued: Option<(Priority, u64)>,
    flying: bool,
}

impl NaiveEntry {
    fn judge(&mut self, now: Now) {
        if let Some((priority, _)) = &mut self.queued {
            *priority = match self.urgent {
                Some(urgent) if now.wall < urgent => Priority::Renewal,
                None if !self.demanded => Priority::First,
                _ => Priority::Demanded,
            };
        }
    }
}

impl Naive {
    fn want(&mut self, identity: &Identity, demanded: bool, now: Now) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.identity == *identity) {
            if demanded {
                entry.demanded = true;
                entry.judge(now);
            }
            return;
        }
        self.next += 1;
        let seed = self.seed ^ self.next.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.entries.push(NaiveEntry {
            number: self.next,
            identity: identity.clone(),
            renewal: Renewal::new(self.limits.backoff, seed, now),
            wake: now.monotonic,
            demanded,
            urgent: None,
            queued: None,
            flying: false,
        });
    }

    fn step(&mut self, now: Now) -> Step {
        loop {
            let due = self.entries.iter_mut().filter(|e| e.wake <= now.monotonic);
            let Some(entry) = due.min_by_key(|e| (e.wake, e.number)) else {
                break;
            };
            match entry.renewal.step(now) {
                renew::Step::Fetch => {
                    entry.wake = now.monotonic;
                    self.next += 1;
                    entry.queued = Some((Priority::Renewal, self.next));
                    entry.judge(now);
                }
                renew::Step::Expired(not_after) => {
                    entry.wake = now.monotonic;
                    entry.urgent = None;
                    entry.demanded = true;
                    entry.judge(now);
                    return Step::Expired {
                        identity: entry.identity.clone(),
                        not_after,
                        failures: entry.renewal.failures(),
                    };
                }
                renew::Step::Sleep(until) => {
                    entry.wake = until;
                    entry.judge(now);
                }
            }
        }
        let flying = self.entries.iter().filter(|e| e.flying).count();
        let queued = self.entries.iter_mut().filter(|e| e.queued.is_some());
        let next = queued.min_by_key(|e| e.queued.map(|(p, n)| (Reverse(p), n)));
        if flying < self.limits.fetches
            && let Some(entry) = next
        {
            entry.queued = None;
            entry.flying = true;
            return Step::Fetch(Ticket(entry.number), entry.identity.clone());
        }
        Step::Sleep(self.entries.iter().map(|e| e.wake).min())
    }

    fn landed(
        &mut self,
        ticket: Ticket,
        now: Now,
        outcome: Result<(SystemTime, SystemTime), Failure>,
    ) -> Option<Identity> {
        let entry = self.entries.iter_mut().find(|e| e.number == ticket.0)?;
        entry.flying = false;
        entry.wake = now.monotonic;
        match outcome {
            Ok((from, to)) => {
                entry.renewal.fetched(now, from, to);
                entry.urgent = Some(to - to.duration_since(from).unwrap() / 10);
                entry.demanded = false;
            }
            Err(Failure::Passing) => entry.renewal.failed(now),
            Err(Failure::Refused) => entry.renewal.refused(now),
        }
        Some(entry.identity.clone())
    }

    fn hurry(&mut self, now: Now) {
        for entry in &mut self.entries {
            entry.renewal.hurry(now, self.limits.backoff.base);
            entry.wake = now.monotonic;
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Want(u8, bool),
    Forget(u8),
    /// One of those in flight comes back: with a lifetime in seconds, or not.
    Land(usize, Result<u64, bool>),
    Pass(u64),
    Jump(i64),
    Hurry,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u8..12, any::<bool>()).prop_map(|(n, demanded)| Event::Want(n, demanded)),
        1 => (0_u8..12).prop_map(Event::Forget),
        6 => (any::<usize>(), proptest::result::maybe_ok(20_u64..5000, any::<bool>()))
            .prop_map(|(which, outcome)| Event::Land(which, outcome)),
        4 => prop_oneof![0_u64..30, 0_u64..2000].prop_map(Event::Pass),
        1 => (-2000_i64..2000).prop_map(Event::Jump),
        1 => Just(Event::Hurry),
    ]
}

proptest! {
    #[test]
    fn the_index_decides_as_a_search_does(
        seed: u64,
        places in 1_usize..5,
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let mut now = begin();
        let mut schedule = Schedule::new(limits(places), seed);
        let mut naive = Naive { limits: limits(places), seed, next: 0, entries: Vec::new() };
        // What is in flight, and what certificates there are, told apart from both.
        let mut flying: Vec<(Ticket, Identity)> = Vec::new();
        let mut held: HashMap<Identity, SystemTime> = HashMap::new();
        let mut last_jump = None;
        for event in events {
            if let Event::Jump(_) = event {
                last_jump = Some(now.monotonic);
            }
            match event {
                Event::Want(n, demanded) => {
                    schedule.want(&identity(n), demanded, now);
                    naive.want(&identity(n), demanded, now);
                }
                Event::Forget(n) => {
                    schedule.forget(&identity(n));
                    naive.entries.retain(|e| e.identity != identity(n));
                    held.remove(&identity(n));
                    // Its fetch may still come back: see below.
                }
                Event::Land(which, outcome) if !flying.is_empty() => {
                    let (ticket, _) = flying.remove(which % flying.len());
                    let outcome = outcome
                        .map(|seconds| life(now, Duration::from_secs(seconds)))
                        .map_err(|refused| if refused { Failure::Refused } else { Failure::Passing });
                    let whose = match outcome {
                        Ok(validity) => schedule.fetched(ticket, now, validity),
                        Err(failure) => schedule.failed(ticket, now, failure),
                    };
                    prop_assert_eq!(&whose, &naive.landed(ticket, now, outcome));
                    if let (Some(identity), Ok((_, not_after))) = (whose, outcome) {
                        held.insert(identity, not_after);
                    }
                }
                Event::Land(..) => {}
                Event::Pass(seconds) => pass(&mut now, Duration::from_secs(seconds)),
                Event::Jump(by) if by < 0 => now.wall -= Duration::from_secs(by.unsigned_abs()),
                Event::Jump(by) => now.wall += Duration::from_secs(by.unsigned_abs()),
                Event::Hurry => {
                    schedule.hurry(now);
                    naive.hurry(now);
                }
            }
            loop {
                let step = schedule.step(now);
                prop_assert_eq!(&step, &naive.step(now));
                match step {
                    Step::Fetch(ticket, identity) => {
                        let known = |(old, _): &(Ticket, Identity)| naive.entries.iter().any(|e| Ticket(e.number) == *old);
                        let mut others = flying.iter().filter(|old| known(old));
                        prop_assert!(others.all(|(_, other)| *other != identity), "one flight each");
                        flying.push((ticket, identity));
                        prop_assert!(flying.iter().filter(|old| known(old)).count() <= places);
                    }
                    Step::Expired { identity, not_after, .. } => {
                        prop_assert_eq!(held.remove(&identity), Some(not_after));
                        prop_assert!(now.wall >= not_after);
                    }
                    Step::Sleep(until) => {
                        prop_assert!(until.is_none_or(|until| until > now.monotonic));
                        break;
                    }
                }
            }
            // The clocks are compared every ten seconds; without a jump nothing is late at all.
            let jumped = last_jump.is_some_and(|at: Instant| now.monotonic - at <= Duration::from_secs(10));
            let expired = held.values().any(|not_after| now.wall >= *not_after);
            prop_assert!(!expired || jumped, "held beyond its end");
        }
    }
}
