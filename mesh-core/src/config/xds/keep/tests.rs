use std::fs;
use std::os::unix::fs::PermissionsExt;

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
    let found = async |whose: &str| {
        open(dir.path(), "default/client", whose.to_owned(), None)
            .await
            .1
    };
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
