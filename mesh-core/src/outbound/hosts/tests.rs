use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(text: &str) -> Arc<[IpAddr]> {
    Arc::new([ip(text)])
}

fn table(capacity: usize) -> Table {
    Table {
        hosts: HashMap::new(),
        capacity,
        ttl: Duration::from_secs(5),
    }
}

fn ask(table: &mut Table, host: &str, now: Instant) -> watch::Sender<Option<Answer>> {
    match table.look(host, now) {
        Looked::Ask(tell, _) => tell,
        _ => panic!("{host} is not to be asked for"),
    }
}

#[test]
fn families_take_turns_in_the_resolvers_order() {
    let found = [
        "::1",
        "::2",
        "::1",
        "::ffff:10.0.0.1",
        "10.0.0.1",
        "10.0.0.2",
    ]
    .map(ip);
    let expected = ["::1", "10.0.0.1", "::2", "10.0.0.2"].map(ip);
    assert_eq!(*in_order(&found).unwrap(), expected);
    assert_eq!(in_order(&[]).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_answer_makes_room_and_look_ups_under_way_do_not() {
    let mut table = table(2);
    let began = Instant::now();
    for (host, seconds) in [("a", 0), ("b", 1)] {
        let now = began + Duration::from_secs(seconds);
        let _tell = ask(&mut table, host, now);
        table.answered(host, Some(&addresses("10.0.0.1")), now);
    }
    let now = began + Duration::from_secs(2);
    let _c = ask(&mut table, "c", now);
    assert!(matches!(table.look("b", now), Looked::Known(_)));
    assert!(matches!(table.look("c", now), Looked::Asked(_)));
    let _a = ask(&mut table, "a", now);
    assert!(matches!(table.look("b", now), Looked::Full));
    assert_eq!(table.hosts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_good_until_its_time_is_over() {
    let mut table = table(2);
    let began = Instant::now();
    let _tell = ask(&mut table, "a", began);
    table.answered("a", Some(&addresses("10.0.0.1")), began);
    let almost = began + Duration::from_millis(4_999);
    assert!(matches!(table.look("a", almost), Looked::Known(_)));
    let _tell = ask(&mut table, "a", began + Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_look_up_whose_task_is_gone_is_made_again() {
    let mut table = table(1);
    let now = Instant::now();
    drop(ask(&mut table, "a", now));
    drop(ask(&mut table, "a", now));
    let _b = ask(&mut table, "b", now);
}

#[tokio::test(start_paused = true)]
async fn the_longest_time_that_can_be_set_is_for_ever() {
    let mut table = table(1);
    table.ttl = Duration::MAX;
    let now = Instant::now();
    let _tell = ask(&mut table, "a", now);
    table.answered("a", Some(&addresses("10.0.0.1")), now);
    let later = now + Duration::from_secs(1 << 30);
    assert!(matches!(table.look("a", later), Looked::Known(_)));
    // Room is made all the same.
    let _b = ask(&mut table, "b", later);
}
