//! Files and folders as they change under a watcher.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_xds::file::{Change, Limits, Watcher};

fn settle(watcher: &mut Watcher) -> Vec<(PathBuf, Vec<u8>)> {
    assert_eq!(watcher.poll().unwrap(), Change::Unsettled);
    match watcher.poll().unwrap() {
        Change::Settled(files) => files,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_counts_when_read_twice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    fs::write(&file, "a").unwrap();
    let mut watcher = Watcher::new(&file, Limits::default());
    assert_eq!(settle(&mut watcher), [(file.clone(), b"a".to_vec())]);
    assert_eq!(watcher.poll().unwrap(), Change::Unchanged);
    // Still being written.
    fs::write(&file, "b").unwrap();
    assert_eq!(watcher.poll().unwrap(), Change::Unsettled);
    fs::write(&file, "bc").unwrap();
    assert_eq!(settle(&mut watcher), [(file.clone(), b"bc".to_vec())]);
    // Back before it came to rest.
    fs::write(&file, "d").unwrap();
    assert_eq!(watcher.poll().unwrap(), Change::Unsettled);
    fs::write(&file, "bc").unwrap();
    assert_eq!(watcher.poll().unwrap(), Change::Unchanged);
    fs::write(&file, "d").unwrap();
    assert_eq!(settle(&mut watcher), [(file, b"d".to_vec())]);
}

fn set_changed(path: &Path, time: SystemTime) {
    let opened = fs::File::open(path).unwrap();
    opened.set_modified(time).unwrap();
}

/// Who starts with them need not wait for a second look.
#[test]
fn files_that_have_long_been_there_are_taken_at_the_first_look() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a.yaml", "b.yaml"].map(|name| folder.path().join(name));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let all = [a.as_path(), b.as_path(), folder.path()];
    for path in all {
        set_changed(path, long_ago);
    }
    let mut file = Watcher::new(&a, Limits::default());
    let found = vec![(a.clone(), b"a".to_vec())];
    assert_eq!(file.poll().unwrap(), Change::Settled(found));
    assert_eq!(file.poll().unwrap(), Change::Unchanged);
    // Only the first: what changes under the watcher was put there just now, whatever it says.
    fs::write(&a, "half").unwrap();
    set_changed(&a, long_ago);
    assert_eq!(settle(&mut file), [(a.clone(), b"half".to_vec())]);

    let found = vec![(a.clone(), b"half".to_vec()), (b.clone(), b"b".to_vec())];
    let first = || Watcher::new(folder.path(), Limits::default()).poll();
    assert_eq!(first().unwrap(), Change::Settled(found));
    // One that was just written, or just put there or taken away.
    for path in all {
        set_changed(path, SystemTime::now());
        assert_eq!(first().unwrap(), Change::Unsettled, "{path:?}");
        set_changed(path, long_ago);
    }
    fs::remove_file(&a).unwrap();
    assert_eq!(first().unwrap(), Change::Unsettled);
}

/// Of a clock that was set since, or was not set then.
#[test]
fn times_that_cannot_be_are_no_reason_to_take_a_file_at_the_first_look() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    fs::write(&file, "a").unwrap();
    let hour = Duration::from_secs(3600);
    for time in [
        SystemTime::now() + hour,
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH + hour,
        SystemTime::UNIX_EPOCH - hour,
    ] {
        set_changed(&file, time);
        let mut watcher = Watcher::new(&file, Limits::default());
        assert_eq!(settle(&mut watcher), [(file.clone(), b"a".to_vec())]);
    }
}

/// It was not there at the first look: it is being put there.
#[test]
fn a_file_that_comes_later_is_read_twice_however_old() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    let mut watcher = Watcher::new(&file, Limits::default());
    assert!(watcher.poll().is_err());
    fs::write(&file, "a").unwrap();
    set_changed(&file, SystemTime::now() - Duration::from_secs(3600));
    assert_eq!(settle(&mut watcher), [(file, b"a".to_vec())]);
}

/// Files may be on their way to it.
#[test]
fn an_empty_folder_is_looked_at_twice() {
    let folder = tempfile::tempdir().unwrap();
    set_changed(folder.path(), SystemTime::now() - Duration::from_secs(3600));
    let mut watcher = Watcher::new(folder.path(), Limits::default());
    assert_eq!(settle(&mut watcher), []);
}

#[test]
fn what_is_missing_is_an_error_and_not_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    let mut watcher = Watcher::new(&file, Limits::default());
    let error = watcher.poll().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("mesh.yaml"), "{error}");
    fs::write(&file, "a").unwrap();
    settle(&mut watcher);
    fs::remove_file(&file).unwrap();
    assert!(watcher.poll().is_err());
    assert!(watcher.poll().is_err());
    fs::write(&file, "a").unwrap();
    assert_eq!(watcher.poll().unwrap(), Change::Unchanged);
    // An error between two equal reads: they do not count as in a row.
    fs::write(&file, "b").unwrap();
    assert_eq!(watcher.poll().unwrap(), Change::Unsettled);
    fs::remove_file(&file).unwrap();
    assert!(watcher.poll().is_err());
    fs::write(&file, "b").unwrap();
    settle(&mut watcher);
}

#[test]
fn a_folder_without_what_is_not_for_us() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "b.yml",
        "a.yaml",
        "c.json",
        "README.md",
        ".hidden.yaml",
        "d.yaml~",
    ] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    fs::create_dir(folder.path().join("sub.yaml")).unwrap();
    let mut watcher = Watcher::new(folder.path(), Limits::default());
    let names: Vec<_> = settle(&mut watcher)
        .into_iter()
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a.yaml", "b.yml", "c.json"]);
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    assert_eq!(settle(&mut watcher).len(), 2);
}

/// How the kubelet updates a mounted ConfigMap: a new folder, and one rename of a symbolic link.
#[cfg(unix)]
#[test]
fn the_swap_of_a_config_map_is_one_change() {
    use std::os::unix::fs::symlink;

    let volume = tempfile::tempdir().unwrap();
    let root = volume.path();
    let version = |name: &str, a: &str, b: &str| {
        let folder = root.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), a).unwrap();
        fs::write(folder.join("b.yaml"), b).unwrap();
        symlink(name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    version("..2026_1", "a1", "b1");
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    symlink("..data/b.yaml", root.join("b.yaml")).unwrap();
    let mut folder = Watcher::new(root, Limits::default());
    let mut file = Watcher::new(root.join("a.yaml"), Limits::default());
    let contents = |files: Vec<(PathBuf, Vec<u8>)>| -> Vec<String> {
        files
            .into_iter()
            .map(|(_, content)| String::from_utf8(content).unwrap())
            .collect()
    };
    assert_eq!(contents(settle(&mut folder)), ["a1", "b1"]);
    assert_eq!(contents(settle(&mut file)), ["a1"]);
    version("..2026_2", "a2", "b2");
    fs::remove_dir_all(root.join("..2026_1")).unwrap();
    assert_eq!(contents(settle(&mut folder)), ["a2", "b2"]);
    assert_eq!(contents(settle(&mut file)), ["a2"]);
    // A link to nowhere is an error, not a file less.
    fs::remove_dir_all(root.join("..2026_2")).unwrap();
    assert!(folder.poll().is_err());
    assert!(file.poll().is_err());
}

#[test]
fn files_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, bytes: usize| fs::write(folder.path().join(name), vec![b'#'; bytes]).unwrap();
    write("a.yaml", 6);
    write("b.yaml", 4);
    let poll = |path: &Path, limits: Limits| Watcher::new(path, limits).poll();
    let bytes = |max| Limits::new().with_max_bytes(max);
    assert!(poll(folder.path(), bytes(10)).is_ok());
    assert_eq!(
        poll(folder.path(), bytes(9)).unwrap_err().kind(),
        ErrorKind::FileTooLarge
    );
    assert!(poll(&folder.path().join("a.yaml"), bytes(6)).is_ok());
    assert_eq!(
        poll(&folder.path().join("a.yaml"), bytes(5))
            .unwrap_err()
            .kind(),
        ErrorKind::FileTooLarge
    );
    let count = |max| Limits::new().with_max_files(max);
    assert!(poll(folder.path(), count(2)).is_ok());
    assert_eq!(
        poll(folder.path(), count(1)).unwrap_err().kind(),
        ErrorKind::FileTooLarge
    );
}

/// Whoever polls asks the watcher how often.
#[test]
fn a_watcher_says_how_often_it_is_to_be_polled() {
    let interval = Duration::from_millis(20);
    let limits = Limits::new().with_interval(interval);
    assert_eq!(
        Watcher::new("mesh.yaml", limits).limits().interval(),
        interval
    );
}
