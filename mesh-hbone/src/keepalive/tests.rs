use std::time::Duration;

use tokio::time::Instant;

use super::{Action, KeepAlive};

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(7);

fn start() -> (Instant, KeepAlive) {
    let now = Instant::now();
    (now, KeepAlive::new(now, INTERVAL, TIMEOUT))
}

#[test]
fn pings_one_interval_after_the_start() {
    let (start, mut keepalive) = start();
    assert_eq!(keepalive.poll(start), Action::Wait(start + INTERVAL));
    assert_eq!(keepalive.poll(start + INTERVAL), Action::Ping);
}

#[test]
fn has_one_ping_out_at_most() {
    let (start, mut keepalive) = start();
    let sent = start + INTERVAL;
    assert_eq!(keepalive.poll(sent), Action::Ping);
    assert_eq!(keepalive.poll(sent), Action::Wait(sent + TIMEOUT));
    keepalive.answered(sent + Duration::from_secs(1));
    let next = sent + Duration::from_secs(1) + INTERVAL;
    assert_eq!(
        keepalive.poll(sent + Duration::from_secs(2)),
        Action::Wait(next)
    );
    assert_eq!(keepalive.poll(next), Action::Ping);
}

#[test]
fn a_peer_that_says_other_things_is_not_given_up() {
    let (start, mut keepalive) = start();
    let sent = start + INTERVAL;
    assert_eq!(keepalive.poll(sent), Action::Ping);
    let heard = sent + Duration::from_secs(6);
    keepalive.heard(heard);
    assert_eq!(
        keepalive.poll(sent + TIMEOUT),
        Action::Wait(heard + TIMEOUT)
    );
    assert_eq!(keepalive.poll(heard + TIMEOUT), Action::GiveUp);
}

#[test]
fn what_is_heard_while_no_ping_is_out_changes_nothing() {
    let (start, mut keepalive) = start();
    keepalive.heard(start + Duration::from_secs(1));
    assert_eq!(keepalive.poll(start), Action::Wait(start + INTERVAL));
}

#[test]
fn gives_up_without_an_answer() {
    let (start, mut keepalive) = start();
    assert_eq!(keepalive.poll(start + INTERVAL), Action::Ping);
    assert_eq!(keepalive.poll(start + INTERVAL + TIMEOUT), Action::GiveUp);
}

#[test]
fn an_answer_that_nobody_asked_for_does_not_delay_the_next_ping() {
    let (start, mut keepalive) = start();
    keepalive.answered(start + Duration::from_secs(9));
    assert_eq!(keepalive.poll(start + INTERVAL), Action::Ping);
}

#[test]
fn a_late_poll_gives_the_peer_its_whole_timeout() {
    let (start, mut keepalive) = start();
    let late = start + INTERVAL * 50;
    assert_eq!(keepalive.poll(late), Action::Ping);
    assert_eq!(keepalive.poll(late), Action::Wait(late + TIMEOUT));
}
