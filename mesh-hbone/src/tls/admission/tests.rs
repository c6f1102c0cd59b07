use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use tokio::sync::oneshot::Receiver;

use super::Waiting;

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn is_evicted(receiver: &mut Receiver<()>) -> bool {
    receiver.try_recv().is_ok()
}

#[test]
fn the_oldest_of_the_busiest_source_goes_first() {
    let mut waiting = Waiting::new(5);
    let (_, mut quiet) = waiting.enter(ip(1));
    let (_, mut busy_old) = waiting.enter(ip(2));
    let (_, mut busy_mid) = waiting.enter(ip(2));
    let (_, mut busy_new) = waiting.enter(ip(2));
    let (_, mut other) = waiting.enter(ip(3));
    let (_, mut newcomer) = waiting.enter(ip(4));
    assert!(is_evicted(&mut busy_old));
    for left in [
        &mut quiet,
        &mut busy_mid,
        &mut busy_new,
        &mut other,
        &mut newcomer,
    ] {
        assert!(!is_evicted(left));
    }
    assert_eq!((waiting.count, waiting.evicted), (5, 1));
}

#[test]
fn of_equally_busy_sources_the_oldest_connection_goes() {
    let mut waiting = Waiting::new(3);
    let mut places: Vec<_> = [9, 1, 5].map(|last| waiting.enter(ip(last)).1).into();
    let (_, mut newcomer) = waiting.enter(ip(7));
    assert!(is_evicted(&mut places[0]));
    assert!(!is_evicted(&mut places[1]) && !is_evicted(&mut places[2]));
    assert!(!is_evicted(&mut newcomer));
}

proptest! {
    /// Twice as many as may wait, from few sources, in any order of coming and going.
    #[test]
    fn bookkeeping_is_exact(steps in proptest::collection::vec((0..4_u8, any::<bool>()), 0..64)) {
        let mut waiting = Waiting::new(8);
        let mut live: Vec<(IpAddr, u64, Receiver<()>)> = Vec::new();
        for (source, comes) in steps {
            if comes || live.is_empty() {
                let counts = |live: &[(IpAddr, u64, Receiver<()>)], of: IpAddr| {
                    live.iter().filter(|(source, ..)| *source == of).count()
                };
                let busiest = (0..4).map(|last| counts(&live, ip(last))).max().unwrap();
                let full = live.len() == 8;
                let (id, receiver) = waiting.enter(ip(source));
                let gone: Vec<usize> = (0..live.len())
                    .filter(|index| is_evicted(&mut live[*index].2))
                    .collect();
                prop_assert_eq!(gone.len(), usize::from(full));
                for index in gone {
                    let source = live[index].0;
                    prop_assert_eq!(counts(&live, source), busiest);
                    let oldest = live.iter().filter(|(of, ..)| *of == source).map(|(_, id, _)| *id).min();
                    let (source, id, _) = live.remove(index);
                    prop_assert_eq!(Some(id), oldest);
                    // What the dropped guard does afterwards changes nothing.
                    waiting.leave(source, id);
                }
                live.push((ip(source), id, receiver));
            } else {
                let (source, id, _) = live.remove(usize::from(source) % live.len());
                waiting.leave(source, id);
            }
            prop_assert_eq!(waiting.count, live.len());
            prop_assert!(waiting.count <= 8);
            let ranked: usize = waiting.order.iter().map(|(count, ..)| count).sum();
            prop_assert_eq!(ranked, live.len());
        }
    }
}
