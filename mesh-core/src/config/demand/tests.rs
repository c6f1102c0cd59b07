use futures_util::FutureExt;

use super::*;

fn id() -> (WorkloadId, Identity) {
    let id = WorkloadId::new("default", "details-v1-1", "details");
    let identity = Identity::new("cluster.local", "default", "details").unwrap();
    (id, identity)
}

fn all(demands: &mut Demands) -> Vec<Demand> {
    std::iter::from_fn(|| demands.next().now_or_never()).collect()
}

#[test]
fn what_stood_before_is_told_first() {
    let board = Board::new();
    let (id, identity) = id();
    let address = "10.0.0.1:80".parse().unwrap();
    board.workload(&id, &identity);
    board.listen(address);
    board.health(AppHealth::Healthy);
    assert_eq!(board.listener(address), None, "nobody was asked");
    let mut demands = board.take(false);
    assert_eq!(
        all(&mut demands),
        [
            Demand::Workload { id, identity },
            Demand::Listener(address),
            Demand::Health(AppHealth::Healthy)
        ]
    );
    assert_eq!(board.listener(address), Some(Asked::Waiting));
    board.no_listener(address);
    assert_eq!(board.listener(address), Some(Asked::Absent));
}

#[test]
fn what_was_taken_back_in_time_is_not_told() {
    let board = Board::new();
    let mut demands = board.take(true);
    let address = "10.0.0.1:80".parse().unwrap();
    board.listen(address);
    board.unlisten(address);
    board.health(AppHealth::Healthy);
    board.health(AppHealth::Unhealthy("starting".into()));
    assert_eq!(
        all(&mut demands),
        [
            Demand::Unlisten(address),
            Demand::Health(AppHealth::Unhealthy("starting".into()))
        ]
    );
}

#[cfg(feature = "istiod")]
#[test]
fn a_name_that_cannot_be_asked_for_is_not_absent() {
    let board = Board::new();
    let mut demands = board.take(true);
    assert_eq!(board.want("ns/gone"), Asked::Waiting);
    board.absent("ns/gone");
    assert_eq!(board.want("ns/a"), Asked::Waiting);
    all(&mut demands);
    board.refuse("ns/a");
    assert_eq!(all(&mut demands), [Demand::Forget("ns/gone".into())]);
    let refused = Asked::Refused(NO_ROOM);
    assert_eq!(board.want("ns/a"), refused, "whoever waits is told");
    assert_eq!(board.want("ns/a"), Asked::Waiting, "there is room now");
    assert_eq!(all(&mut demands), [Demand::Want("ns/a".into())]);
    // Of one that nobody waits for any more nothing is left.
    board.refuse("ns/other");
    assert_eq!(board.want("ns/other"), Asked::Waiting);
}

#[test]
fn names_are_bounded_and_absent_ones_make_room() {
    let board = Board::new();
    let mut demands = board.take(true);
    for number in 0..MAX_WANTED {
        assert_eq!(board.want(&format!("ns/{number}")), Asked::Waiting);
    }
    assert_eq!(all(&mut demands).len(), MAX_WANTED);
    assert_eq!(board.want("ns/one-more"), Asked::Refused(NO_ROOM));
    board.absent("ns/7");
    assert_eq!(board.want("ns/7"), Asked::Absent);
    assert_eq!(board.want("ns/one-more"), Asked::Waiting);
    assert_eq!(
        all(&mut demands),
        [
            Demand::Forget("ns/7".into()),
            Demand::Want("ns/one-more".into())
        ]
    );
}
