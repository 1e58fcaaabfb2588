use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("inferspan-names-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        Self(folder)
    }

    fn open(&self) -> Cache {
        Cache::at(&self.0).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key(name: &str) -> Key {
    Key(name.to_owned())
}

/// Any table that is not the empty one.
fn table() -> Table {
    let mut table = Table::default();
    table.unread = 7;
    table
}

#[test]
fn what_was_put_is_got_back_by_its_key_alone() {
    let folder = Folder::new("back");
    let cache = folder.open();
    assert_eq!(cache.get(&key("a")), None);
    cache.put(&key("a"), &table());
    assert_eq!(cache.get(&key("a")), Some(table()));
    assert_eq!(folder.open().get(&key("a")), Some(table()));
    assert_eq!(cache.get(&key("b")), None);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_damaged_file_is_ignored_and_written_anew() {
    let folder = Folder::new("damaged");
    let cache = folder.open();
    cache.put(&key("a"), &table());
    let whole = fs::read(folder.0.join("a")).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(folder.0.join("a"), &bytes).unwrap();
        assert_eq!(cache.get(&key("a")), None, "byte {at}");
        fs::write(folder.0.join("a"), &whole[..at]).unwrap();
        assert_eq!(cache.get(&key("a")), None, "cut at {at}");
    }
    cache.put(&key("a"), &table());
    assert_eq!(cache.get(&key("a")), Some(table()));
}

#[test]
fn what_others_could_have_written_is_not_read() {
    let folder = Folder::new("others");
    let cache = folder.open();
    cache.put(&key("a"), &table());
    let file = folder.0.join("a");
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(cache.get(&key("a")), None, "{mode:o}");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&file, folder.0.join("link")).unwrap();
    assert_eq!(cache.get(&key("link")), None);
    assert_eq!(cache.get(&key("a")), Some(table()));
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Cache::at(&folder.0).is_none(), "a folder that anybody may write to");
    let linked = Folder::new("linked");
    std::os::unix::fs::symlink(&folder.0, &linked.0).unwrap();
    assert!(Cache::at(&linked.0).is_none(), "a link in its place");
    fs::remove_file(&linked.0).unwrap();
}

#[test]
fn a_file_of_another_user_is_not_read() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED a_file_of_another_user_is_not_read: needs root, to give a file away");
        return;
    }
    let folder = Folder::new("user");
    let cache = folder.open();
    cache.put(&key("a"), &table());
    std::os::unix::fs::chown(folder.0.join("a"), Some(65_534), None).unwrap();
    assert_eq!(cache.get(&key("a")), None);
}

#[test]
fn the_oldest_go_when_it_is_full() {
    let folder = Folder::new("full");
    let cache = folder.open();
    for (age, name) in ["a", "b", "c"].into_iter().enumerate() {
        cache.put(&key(name), &table());
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 + age as u64);
        File::options().write(true).open(folder.0.join(name)).unwrap().set_modified(time).unwrap();
    }
    let size = fs::metadata(folder.0.join("a")).unwrap().len();
    cache.shrink(2 * size);
    let left = ["a", "b", "c"].map(|name| cache.get(&key(name)).is_some());
    assert_eq!(left, [false, true, true]);
}
