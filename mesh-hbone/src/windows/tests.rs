use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Budget, LEAST, Windows};

const SMALL: u32 = 256 << 10;
const LARGE: u32 = 1 << 20;
const INTERVAL: Duration = Duration::from_secs(10);

struct Connection {
    windows: Windows,
    now: Instant,
    arrived: u64,
    window: u32,
}

impl Connection {
    fn new(budget: &Arc<Budget>, connection: u32) -> Self {
        let now = Instant::now();
        Self {
            windows: Windows::new(SMALL, LARGE, connection, INTERVAL, Arc::clone(budget), now),
            now,
            arrived: 0,
            window: SMALL,
        }
    }

    /// The window after `bytes` more have arrived for `live` tunnels and `time` has passed.
    fn after(&mut self, time: Duration, live: usize, bytes: u64) -> u32 {
        self.now += time;
        self.arrived += bytes;
        if let Some(window) = self.windows.poll(self.now, live, self.arrived) {
            assert_ne!(window, self.window);
            self.windows.ask(window);
            self.window = window;
        }
        self.window
    }
}

fn ample() -> Arc<Budget> {
    Arc::new(Budget::new(1 << 40))
}

const SOON: Duration = Duration::from_millis(1);

#[test]
fn few_tunnels_that_move_much_get_the_bulk_window_and_give_it_back() {
    let mut connection = Connection::new(&ample(), 100 * SMALL);
    assert_eq!(connection.after(SOON, 1, 1 << 20), SMALL);
    assert_eq!(connection.after(SOON, 1, 1 << 20), LARGE);
    assert_eq!(connection.after(SOON, 4, 0), LARGE);
    assert_eq!(connection.after(SOON, 5, 0), SMALL);
    assert_eq!(connection.after(SOON, 2, 0), SMALL, "once an interval");
    // An interval that began with much, then one with nothing.
    assert_eq!(connection.after(INTERVAL, 2, 0), LARGE);
    assert_eq!(connection.after(INTERVAL, 2, 0), SMALL);
}

#[test]
fn tunnels_that_come_and_go_cost_few_settings() {
    let budget = Arc::new(Budget::new(6 * u64::from(SMALL)));
    for most in [2, 5, 9] {
        let mut connection = Connection::new(&budget, 100 * SMALL);
        let (mut changes, mut window) = (0, SMALL);
        // 20 s of 1 000 tunnels a second.
        for step in 0..20_000 {
            let next = connection.after(SOON, step % most, 64 << 10);
            changes += usize::from(next != window);
            window = next;
        }
        // Three intervals, each with one growth, and with what is given back from there.
        assert!(changes <= 3 * 3, "{changes} for up to {most}");
    }
}

#[test]
fn a_window_that_could_not_be_asked_for_is_wanted_again() {
    let mut connection = Connection::new(&ample(), 100 * SMALL);
    assert_eq!(connection.after(SOON, 1, 8 << 20), LARGE);
    for _ in 0..3 {
        let (now, arrived) = (connection.now, connection.arrived);
        let wanted = connection.windows.poll(now, 50, arrived);
        assert_eq!(wanted, Some(SMALL));
    }
    assert_eq!(connection.after(SOON, 50, 0), SMALL);
}

#[test]
fn a_connection_without_tunnels_asks_for_nothing() {
    let mut connection = Connection::new(&ample(), 100 * SMALL);
    assert_eq!(connection.after(SOON, 1, 8 << 20), LARGE);
    assert_eq!(connection.after(INTERVAL, 0, 0), LARGE);
    assert_eq!(connection.after(INTERVAL, 0, 0), LARGE);
    assert_eq!(connection.after(SOON, 1, 0), SMALL);
}

#[test]
fn what_tunnels_can_hold_unread_is_not_bulk() {
    let mut connection = Connection::new(&ample(), 100 * SMALL);
    assert_eq!(connection.after(SOON, 4, 4 * u64::from(SMALL)), SMALL);
    for _ in 0..5 {
        assert_eq!(connection.after(INTERVAL, 4, 0), SMALL);
    }
}

#[test]
fn bulk_windows_fit_the_connections() {
    let mut connection = Connection::new(&ample(), 2 * LARGE);
    assert_eq!(connection.after(SOON, 2, 8 << 20), LARGE);
    assert_eq!(connection.after(SOON, 3, 0), SMALL);
    let mut connection = Connection::new(&ample(), LARGE - 1);
    assert_eq!(connection.after(SOON, 1, 8 << 20), SMALL);
}

#[test]
fn a_spent_budget_takes_windows_back() {
    let budget = Arc::new(Budget::new(8 * u64::from(SMALL)));
    let mut first = Connection::new(&budget, 100 * SMALL);
    let mut second = Connection::new(&budget, 100 * SMALL);
    assert_eq!(first.after(SOON, 6, 0), SMALL);
    assert_eq!(second.after(SOON, 3, 0), LEAST);
    assert_eq!(second.after(SOON, 1, 8 << 20), LEAST, "no room to spare");
    assert_eq!(first.after(SOON, 1, 0), SMALL);
    assert_eq!(second.after(SOON, 2, 0), SMALL);
    assert_eq!(second.after(SOON, 1, 0), SMALL, "once an interval");
    assert_eq!(second.after(INTERVAL, 1, 0), LARGE);
    assert_eq!(budget.promised(), u64::from(SMALL) + u64::from(LARGE));
    drop(first);
    drop(second);
    assert_eq!(budget.promised(), 0);
}

#[test]
fn the_budget_counts_what_lives() {
    let budget = ample();
    let mut connections: Vec<_> = (0..3)
        .map(|_| Connection::new(&budget, 100 * SMALL))
        .collect();
    // A walk through numbers of tunnels that any order of events could bring.
    for step in 0..1_000_u64 {
        let at = (step * 7 % 3) as usize;
        let live = (step * 31 % 11) as usize;
        let time = Duration::from_millis(step * 997 % 4_000);
        connections[at].after(time, live, step * 40_503 % (1 << 20));
        let all = connections
            .iter()
            .map(|connection| connection.windows.live as u64 * u64::from(connection.window));
        assert_eq!(budget.promised(), all.sum::<u64>());
    }
}
