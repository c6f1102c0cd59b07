use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{Backoff, Now, REST, Renewal, Step};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const BACKOFF: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(60),
};

/// A world with two clocks and one renewal in it.
struct World {
    now: Now,
    renewal: Renewal,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Now {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            monotonic: Instant::now(),
        };
        Self {
            now,
            renewal: Renewal::new(BACKOFF, seed, now),
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now.wall += by;
        self.now.monotonic += by;
    }

    /// Lets time pass until there is something to do, and says what.
    fn next(&mut self) -> Step {
        loop {
            match self.renewal.step(self.now) {
                Step::Sleep(until) => {
                    assert!(
                        until > self.now.monotonic,
                        "a sleep that ends at once spins"
                    );
                    self.advance(until - self.now.monotonic);
                }
                step => return step,
            }
        }
    }

    /// The next fetch brings a certificate that was made now.
    fn fetch(&mut self, lifetime: Duration) {
        assert_eq!(self.next(), Step::Fetch);
        let wall = self.now.wall;
        self.renewal.fetched(self.now, wall, wall + lifetime);
    }

    fn seconds_until_next_fetch(&mut self) -> f64 {
        let before = self.now.monotonic;
        assert_eq!(self.next(), Step::Fetch);
        (self.now.monotonic - before).as_secs_f64()
    }
}

#[test]
fn one_fetch_is_in_flight() {
    let mut world = World::new(1);
    assert_eq!(world.renewal.step(world.now), Step::Fetch);
    for _ in 0..10_000 {
        let step = world.renewal.step(world.now);
        assert!(matches!(step, Step::Sleep(_)), "{step:?}");
        world.advance(Duration::from_secs(1));
    }
}

#[test]
fn renews_at_half_life_give_or_take() {
    let mut seen = Vec::new();
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.fetch(DAY);
        let part = world.seconds_until_next_fetch() / DAY.as_secs_f64();
        assert!((0.45..=0.55).contains(&part), "{part}");
        seen.push(part);
    }
    // Certificates that were issued together are not renewed together.
    let spread =
        seen.iter().fold(0.0, |a: f64, b| a.max(*b)) - seen.iter().fold(1.0, |a: f64, b| a.min(*b));
    assert!(spread > 0.05, "{spread}");
}

#[test]
fn pauses_grow_to_half_of_the_cap_before_the_first_certificate() {
    for seed in 0..50 {
        let mut world = World::new(seed);
        let begin = world.now.monotonic;
        let mut ceiling = BACKOFF.base;
        let mut tries = 0;
        assert_eq!(world.next(), Step::Fetch);
        while world.now.monotonic - begin < HOUR {
            tries += 1;
            world.renewal.failed(world.now);
            let pause = world.seconds_until_next_fetch();
            assert!(pause >= 0.5 && pause <= ceiling.as_secs_f64(), "{pause}");
            ceiling = (ceiling * 2).min(BACKOFF.cap / 2);
        }
        assert!((120..600).contains(&tries), "{tries} in an hour");
    }
}

#[test]
fn a_success_resets_the_pause() {
    let mut world = World::new(3);
    assert_eq!(world.next(), Step::Fetch);
    for _ in 0..10 {
        world.renewal.failed(world.now);
        assert_eq!(world.next(), Step::Fetch);
    }
    world
        .renewal
        .fetched(world.now, world.now.wall, world.now.wall + DAY);
    assert_eq!(world.next(), Step::Fetch);
    assert_eq!(world.renewal.failures(), 0);
    world.renewal.failed(world.now);
    assert!(world.seconds_until_next_fetch() <= 1.0);
}

/// at least five tries in the last tenth of its life, then said once that it expired.
#[test]
fn tries_hard_before_the_end() {
    for lifetime in [5, 60, 600, 3600, 24 * 3600].map(Duration::from_secs) {
        for seed in 0..50 {
            let mut world = World::new(seed);
            world.fetch(lifetime);
            let not_after = world.now.wall + lifetime;
            let last_tenth = not_after - lifetime / 10;
            let mut late_tries = 0;
            loop {
                match world.next() {
                    Step::Expired(at) => {
                        assert_eq!(at, not_after);
                        assert!(world.now.wall >= not_after);
                        let late = world.now.wall.duration_since(not_after).unwrap();
                        assert!(late <= Duration::from_secs(1), "{late:?}");
                        break;
                    }
                    _ => world.renewal.failed(world.now),
                }
                late_tries += u32::from(world.now.wall >= last_tenth);
            }
            assert!(late_tries >= 5, "{late_tries} of {lifetime:?}");
            for _ in 0..100 {
                assert_eq!(world.next(), Step::Fetch, "said once");
                world.renewal.failed(world.now);
            }
        }
    }
}

/// R-22, and a machine that slept: the time of day says that it is due, the other clock does not.
#[test]
fn a_jump_past_the_renewal_renews_soon_but_not_all_at_once() {
    let mut waits = Vec::new();
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.fetch(DAY);
        world.advance(HOUR);
        world.now.wall += HOUR * 13;
        waits.push(world.seconds_until_next_fetch() as u64);
    }
    assert!(waits.iter().all(|wait| *wait <= 60), "{waits:?}");
    for second in 0..60 {
        let at_once = waits.iter().filter(|wait| **wait == second).count();
        assert!(at_once < 10, "{at_once} in second {second}");
    }
}

#[test]
fn a_sleep_past_the_expiry_is_noticed_and_mended() {
    let mut world = World::new(5);
    world.fetch(DAY);
    world.advance(HOUR);
    world.now.wall += DAY * 2;
    let before = world.now.monotonic;
    assert!(matches!(world.next(), Step::Expired(_)));
    assert_eq!(world.next(), Step::Fetch);
    assert!(world.now.monotonic - before <= BACKOFF.base);
}

#[test]
fn a_jump_back_does_not_put_renewal_off() {
    let mut world = World::new(6);
    world.fetch(DAY);
    world.now.wall -= DAY * 3;
    let part = world.seconds_until_next_fetch() / DAY.as_secs_f64();
    assert!((0.45..=0.55).contains(&part), "{part}");
}

/// Our clock is ahead of the authority's by almost a lifetime: each certificate comes at its end.
#[test]
fn certificates_that_come_late_in_life_are_not_fetched_all_the_time() {
    for left in [
        Duration::from_millis(1),
        Duration::from_millis(100),
        Duration::from_secs(2),
    ] {
        let mut world = World::new(7);
        let begin = world.now.monotonic;
        let mut fetches = 0;
        while world.now.monotonic - begin < HOUR {
            if world.next() == Step::Fetch {
                fetches += 1;
                let not_after = world.now.wall + left;
                world
                    .renewal
                    .fetched(world.now, not_after - HOUR, not_after);
            }
        }
        assert!(fetches <= 2 + HOUR.as_secs() / REST.as_secs(), "{fetches}");
    }
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Jump(i64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1_u64..600).prop_map(Event::Pass),
        1 => prop_oneof![-86_400_i64..86_400, -300_i64..300].prop_map(Event::Jump),
    ];
    proptest::collection::vec(event, 1..60)
}

proptest! {
    /// PT-14: wherever in its first 60 % a certificate comes, it is renewed in [45 %, 80 %].
    #[test]
    fn renewal_falls_into_the_middle_of_life(
        seed: u64,
        lifetime in 60_u64..10_000_000,
        age in 0.0..0.6_f64,
    ) {
        let mut world = World::new(seed);
        assert_eq!(world.next(), Step::Fetch);
        let lifetime = Duration::from_secs(lifetime);
        let not_before = world.now.wall - lifetime.mul_f64(age);
        world.renewal.fetched(world.now, not_before, not_before + lifetime);
        prop_assert_eq!(world.next(), Step::Fetch);
        let part = world.now.wall.duration_since(not_before).unwrap().as_secs_f64() / lifetime.as_secs_f64();
        prop_assert!((0.449..=0.801).contains(&part), "{}", part);
    }

    /// No certificate is held beyond its end, nothing spins, and clocks that jump cost one fetch
    /// a jump, whatever the authority does.
    #[test]
    fn neither_failures_nor_jumps_make_it_spin(
        seed: u64,
        lifetime in 60_u64..200_000,
        works in proptest::collection::vec(any::<bool>(), 1..8),
        events in events(),
    ) {
        let lifetime = Duration::from_secs(lifetime);
        let always = works.iter().all(|works| *works);
        let mut world = World::new(seed);
        let begin = world.now.monotonic;
        let (mut fetches, mut jumps, mut not_after) = (0_usize, 0, None);
        for event in events {
            let until = match event {
                Event::Pass(seconds) => world.now.monotonic + Duration::from_secs(seconds),
                Event::Jump(by) if by < 0 => {
                    world.now.wall -= Duration::from_secs(by.unsigned_abs());
                    jumps += 1;
                    continue;
                }
                Event::Jump(by) => {
                    world.now.wall += Duration::from_secs(by.unsigned_abs());
                    jumps += 1;
                    continue;
                }
            };
            while world.now.monotonic < until {
                match world.renewal.step(world.now) {
                    Step::Fetch => {
                        let works = works[fetches % works.len()];
                        fetches += 1;
                        if works {
                            let wall = world.now.wall;
                            world.renewal.fetched(world.now, wall, wall + lifetime);
                            not_after = Some(wall + lifetime);
                        } else {
                            world.renewal.failed(world.now);
                        }
                    }
                    Step::Expired(at) => {
                        prop_assert_eq!(Some(at), not_after.take());
                        prop_assert!(world.now.wall >= at);
                    }
                    Step::Sleep(wake) => {
                        prop_assert!(wake > world.now.monotonic);
                        prop_assert!(not_after.is_none_or(|at| at > world.now.wall));
                        world.advance(wake.min(until) - world.now.monotonic);
                    }
                }
            }
        }
        let seconds = (world.now.monotonic - begin).as_secs_f64();
        // The shortest pause after a failure is half a second.
        prop_assert!(fetches as f64 <= 2.0 + seconds / 0.5, "{} in {} s", fetches, seconds);
        if always {
            let renewals = seconds / (0.45 * lifetime.as_secs_f64());
            let bound = 1.0 + renewals + f64::from(jumps);
            prop_assert!(fetches as f64 <= bound, "{} > {}", fetches, bound);
            prop_assert!(fetches as f64 <= 2.0 + seconds / REST.as_secs_f64());
        }
    }
}
