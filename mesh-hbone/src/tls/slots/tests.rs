use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::oneshot::Receiver;
use tokio::time::Instant;

use super::{Room, State};

const GRACE: Duration = Duration::from_secs(1);

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn told(receiver: &mut Receiver<()>) -> bool {
    receiver.try_recv().is_ok()
}

#[test]
fn a_freed_slot_goes_to_the_source_with_fewest() {
    let now = Instant::now();
    let mut slots = State::new(2);
    let (first, mut granted, _e1) = slots.enter(ip(1), now);
    assert!(told(&mut granted));
    let (_, mut granted, _e2) = slots.enter(ip(1), now);
    assert!(told(&mut granted));
    let (_, mut busy, _e3) = slots.enter(ip(1), now);
    let (_, mut quiet, _e4) = slots.enter(ip(2), now);
    assert!(!told(&mut busy) && !told(&mut quiet));
    slots.leave(ip(1), first, now);
    // It came later, but has none.
    assert!(!told(&mut busy) && told(&mut quiet));
}

#[test]
fn the_busiest_gives_way_after_its_grace_and_only_while_it_has_more() {
    let start = Instant::now();
    let mut slots = State::new(4);
    let mut stalled: Vec<_> = (0..4).map(|_| slots.enter(ip(1), start)).collect();
    let mut quiet: Vec<_> = (0..3).map(|_| slots.enter(ip(2), start)).collect();
    // Its first has the slot that is kept for whoever has none.
    assert!(told(&mut quiet[0].1) && !told(&mut stalled[3].1));
    let early = start + GRACE / 2;
    assert_eq!(
        slots.make_room(ip(2), early, GRACE),
        Room::Later(start + GRACE)
    );
    let due = start + GRACE;
    assert_eq!(slots.make_room(ip(2), due, GRACE), Room::Made);
    assert!(told(&mut stalled[0].2) && told(&mut quiet[1].1));
    // Two each: nobody has more.
    assert_eq!(slots.make_room(ip(2), due, GRACE), Room::Later(due + GRACE));
    assert_eq!(slots.taken, 4);
    assert_eq!(slots.make_room(ip(9), due, GRACE), Room::NotNeeded);
}

/// Sources that take what they get, and keep it.
#[test]
fn whoever_has_none_waits_for_no_grace() {
    let now = Instant::now();
    let mut slots = State::new(16);
    let mut flood: Vec<_> = (0..100).map(|_| slots.enter(ip(1), now)).collect();
    assert_eq!(slots.taken, 12);
    for quiet in 20..24 {
        let (_, mut granted, _evicted) = slots.enter(ip(quiet), now);
        assert!(told(&mut granted));
    }
    assert_eq!(slots.taken, 16);
    // Who has one already waits for the grace, as ever.
    let (_, mut second, _evicted) = slots.enter(ip(20), now);
    let due = now + GRACE;
    assert_eq!(slots.make_room(ip(20), now, GRACE), Room::Later(due));
    assert_eq!(slots.make_room(ip(20), due, GRACE), Room::Made);
    assert!(told(&mut second) && told(&mut flood[0].2));
}

/// Source, id, whether it was granted; its two receivers.
type Live = (IpAddr, u64, bool, Receiver<()>, Receiver<()>);

proptest! {
    /// Any order of coming, going and giving way, against a list.
    #[test]
    fn bookkeeping_is_exact(
        count in 1..6_usize,
        steps in proptest::collection::vec((0..3_u8, 0..4_u8, any::<prop::sample::Index>()), 0..80),
    ) {
        let start = Instant::now();
        let mut slots = State::new(count);
        let mut live: Vec<Live> = Vec::new();
        for (step, (what, source, which)) in steps.into_iter().enumerate() {
            let now = start + GRACE * u32::try_from(step).unwrap();
            let source = ip(source);
            let has = |live: &[Live], of: IpAddr| {
                live.iter().filter(|entry| entry.0 == of && entry.2).count()
            };
            let mut made = false;
            match what {
                0 => {
                    let (id, granted, evicted) = slots.enter(source, now);
                    live.push((source, id, false, granted, evicted));
                }
                1 if !live.is_empty() => {
                    let (source, id, ..) = live.swap_remove(which.index(live.len()));
                    slots.leave(source, id, now);
                }
                _ => {
                    let most = (0..4).map(|last| has(&live, ip(last))).max().unwrap_or(0);
                    let waits = live.iter().any(|entry| entry.0 == source && !entry.2);
                    let expected = waits && most > has(&live, source) + 1;
                    let room = slots.make_room(source, now, GRACE);
                    // What was granted at this very time still has its grace.
                    if room == Room::Made {
                        prop_assert!(expected);
                    }
                    made = room == Room::Made;
                }
            }
            let gone: Vec<_> = (0..live.len()).filter(|&at| told(&mut live[at].4)).collect();
            prop_assert_eq!(gone.len(), usize::from(made));
            for at in gone.into_iter().rev() {
                let (source, id, was_granted, ..) = live.remove(at);
                prop_assert!(was_granted);
                // What the dropped guard does afterwards changes nothing.
                slots.leave(source, id, now);
            }
            for entry in &mut live {
                entry.2 |= told(&mut entry.3);
            }
            let running = live.iter().filter(|entry| entry.2).count();
            prop_assert_eq!(slots.taken, running);
            let waits = |entry: &Live| !entry.2 && has(&live, entry.0) == 0;
            let limit = match live.iter().any(waits) {
                true => count,
                false => count - count / 4,
            };
            let waiting = live.len() - running;
            prop_assert!(waiting == 0 || running >= limit, "no slot is idle while somebody waits for it");
            let ranked: usize = slots.busiest.iter().map(|(count, ..)| count).sum();
            prop_assert_eq!(ranked, running);
        }
        for (source, id, ..) in live {
            slots.leave(source, id, start);
        }
        prop_assert!(slots.sources.is_empty() && slots.busiest.is_empty() && slots.next.is_empty());
    }
}
