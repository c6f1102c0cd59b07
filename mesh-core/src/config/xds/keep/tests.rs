use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;

use std::pin::pin;
use std::task::{Context, Waker};

use super::*;

fn content() -> Content {
    let mut content = Content {
        whose: "default/client at istiod:15012".to_owned(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        saved: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        resources: HashTrieMapSync::new_sync(),
    };
    for (url, name, version, value) in [
        ("type/a", "one", "1", &b"\x00\xff"[..]),
        ("type/a", "two", "", b""),
        ("type/b", "one", "2", b"b"),
    ] {
        content.put(Kept::new(url, name, version, value));
    }
    content
}

#[test]
fn what_was_written_is_read_again() {
    let mut content = content();
    assert_eq!(Content::decode(&content.encode()), Ok(content.clone()));
    content.remove("type/a".into(), "one");
    let read = Content::decode(&content.encode()).unwrap();
    assert_eq!((read.resources.size(), read), (2, content));
}

/// Each of its bytes counts, and its end does.
#[test]
fn what_is_damaged_is_refused() {
    let bytes = content().encode();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(Content::decode(&damaged).is_err(), "byte {at}");
        assert!(Content::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Content::decode(&longer).is_err());
    let mut other = bytes;
    other[MARK_END + 3] = 9;
    assert_eq!(
        Content::decode(&other),
        Err("it is of another version of this library")
    );
    assert_eq!(
        Content::decode(b"hello"),
        Err("expected a kept configuration: it is something else")
    );
}

/// Where the version begins.
const MARK_END: usize = b"mesh discovery snapshot\n".len();

#[tokio::test]
async fn only_its_owner_may_have_written_it_and_for_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let found = async |whose: &str| open_at(dir.path(), whose).await.1;
    let whose = content().whose;
    assert!(found(&whose).await.is_none(), "nothing is there yet");
    let path = path_of(dir.path(), "default/client");
    assert_eq!(path, dir.path().join("discovery/default_client.snapshot"));
    let mut writing = content();
    store(&path, &writing).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let again = found(&whose).await.unwrap();
    assert_eq!(again.kept.len(), 3);
    assert_eq!(
        (again.addresses, again.saved),
        (writing.addresses.clone(), writing.saved)
    );
    assert!(found("somebody else").await.is_none());

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(found(&whose).await.is_none(), "others can read it");
    let folder = path.parent().unwrap();
    // Written anew it is private again.
    writing.saved += Duration::from_secs(1);
    store(&path, &writing).unwrap();
    assert!(found(&whose).await.is_some());
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(found(&whose).await.is_none(), "others can put files there");
    assert!(store(&path, &writing).is_err());
}

async fn open_at(dir: &Path, whose: &str) -> (Keeper, Option<Found>) {
    let pause = Duration::from_millis(1);
    open(dir, "default/client", whose.to_owned(), None, pause).await
}

fn numbered(numbers: std::ops::Range<usize>, version: &str) -> Vec<Kept> {
    let one = |number| Kept::new("type/a", format!("name-{number}"), version, *b"value");
    numbers.map(one).collect()
}

/// One poll of its task, which is dropped then.
fn poll(keeper: &mut Keeper) {
    let mut context = Context::from_waker(Waker::noop());
    let tend = pin!(keeper.tend(|| SystemTime::UNIX_EPOCH));
    assert!(tend.poll(&mut context).is_pending());
}

/// How many there are of this version.
fn count(keeper: &Keeper, version: &str) -> usize {
    let all = keeper.content.resources.values();
    all.filter(|one| one.version() == version).count()
}

#[tokio::test(start_paused = true)]
async fn a_push_of_a_whole_mesh_is_put_with_the_rest_little_by_little() {
    const MANY: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = open_at(dir.path(), "mesh").await;
    keeper.is_whole();
    keeper.take(numbered(0..MANY, "1"), Vec::new());
    for _ in 0..=MANY / 64 {
        poll(&mut keeper);
    }
    assert_eq!(count(&keeper, "1"), MANY);

    keeper.take(numbered(0..MANY, "2"), Vec::new());
    let gone = (0..10).map(|number| ("type/a".into(), format!("name-{number}").into()));
    keeper.take(numbered(MANY..MANY + 1, "2"), gone.collect());
    // It is due, and all of it is not here yet.
    tokio::time::advance(BETWEEN).await;
    let (mut polls, mut before) = (0, 0);
    while keeper.writing.is_none() {
        poll(&mut keeper);
        polls += 1;
        let now = count(&keeper, "2");
        assert!(now <= before + 64, "{before} to {now}");
        before = now;
    }
    assert!(polls > MANY / 64, "{polls}");
    assert_eq!((count(&keeper, "1"), before), (0, MANY + 1 - 10));
    keeper.writing.take().unwrap().await.unwrap().unwrap();
    let (_, found) = open_at(dir.path(), "mesh").await;
    let mut names: Vec<_> = found
        .unwrap()
        .kept
        .iter()
        .map(|one| one.name().to_owned())
        .collect();
    let mut expected: Vec<_> = (10..=MANY).map(|number| format!("name-{number}")).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test(start_paused = true)]
async fn what_waits_to_be_put_with_the_rest_has_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = open_at(dir.path(), "mesh").await;
    keeper.take(numbered(0..100_100, "1"), Vec::new());
    keeper.make_room().await;
    // All but what may wait.
    assert_eq!(count(&keeper, "1"), 128);
    keeper.make_room().await;
    assert_eq!(count(&keeper, "1"), 128);
}
