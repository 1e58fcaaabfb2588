//! Folders that others can write, links, pipes.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use super::*;

/// A folder of its own with these permissions, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, mode: u32) -> Self {
        let path = std::env::temp_dir().join(format!("inferspan-out-file-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn pipe(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, text: &str) -> Result<(), OutFileError> {
    let mut file = OutFile::find(path)?.open(Existing::Dropped, OUTPUT)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_new_file_is_read_by_nobody_but_its_owner_and_group() {
    let folder = Folder::new("mode", 0o755);
    write(&folder.at("new"), "one").unwrap();
    assert_eq!(std::fs::metadata(folder.at("new")).unwrap().mode() & 0o777 & !OUTPUT, 0);
    write(&folder.at("new"), "2").unwrap();
    assert_eq!(read(&folder.at("new")), "2", "what was there is dropped");
    OutFile::find(&folder.at("new")).unwrap().open(Existing::Kept, OUTPUT).unwrap().write_all(b"3").unwrap();
    assert_eq!(read(&folder.at("new")), "23");
    for none in ["", "..", "gone/new"] {
        assert!(matches!(OutFile::find(&folder.at(none)), Err(OutFileError::Io(_))), "{none}");
    }
}

#[test]
fn a_link_is_followed_only_where_nobody_else_could_have_made_it() {
    // shared/{file,folder} -> own/…, and the other way round
    let own = Folder::new("own", 0o755);
    std::fs::write(own.at("precious"), "kept").unwrap();
    for (name, mode) in [("all", 0o777), ("sticky", 0o1777), ("group", 0o775)] {
        let shared = Folder::new(name, mode);
        symlink(own.at("precious"), shared.at("file")).unwrap();
        symlink(&own.0, shared.at("folder")).unwrap();
        for path in ["file", "folder/precious", "./folder/../folder/precious"] {
            let refused = write(&shared.at(path), "lost").unwrap_err();
            assert!(matches!(refused, OutFileError::Link(_)), "{name} {path}: {refused}");
            let said = refused.failure("the access log", &shared.at(path));
            assert!(said.what.contains("is a link in a folder that others can write"), "{said}");
        }
        // A link of one's own that leads there leads to the link.
        let _ = std::fs::remove_file(own.at("there"));
        symlink(shared.at("file"), own.at("there")).unwrap();
        assert!(matches!(write(&own.at("there"), "lost"), Err(OutFileError::Link(_))));
        write(&shared.at("plain"), "fine").unwrap();
        OutFile::find(&shared.at("plain")).unwrap().replace(b"better").unwrap();
        assert_eq!(read(&shared.at("plain")), "better");
    }
    assert_eq!(read(&own.at("precious")), "kept");
    symlink("precious", own.at("relative")).unwrap();
    symlink(&own.0, own.at("folder")).unwrap();
    write(&own.at("folder/relative"), "mine").unwrap();
    assert_eq!(read(&own.at("precious")), "mine");
    symlink("round", own.at("round")).unwrap();
    assert!(matches!(OutFile::find(&own.at("round")), Err(OutFileError::Io(_))));
}

#[test]
fn a_file_that_another_user_left_in_a_shared_folder_is_not_written() {
    if own_user() != 0 {
        eprintln!("SKIPPED: only root can make another user's file");
        return;
    }
    let shared = Folder::new("foreign", 0o1777);
    std::fs::write(shared.at("theirs"), "bait").unwrap();
    std::os::unix::fs::chown(shared.at("theirs"), Some(65_534), None).unwrap();
    assert!(matches!(write(&shared.at("theirs"), "x"), Err(OutFileError::Foreign)));
    assert_eq!(read(&shared.at("theirs")), "bait", "not even cut");
    // In a folder of that user's, it is the user's own.
    std::os::unix::fs::chown(&shared.0, Some(65_534), None).unwrap();
    write(&shared.at("theirs"), "x").unwrap();
    symlink("theirs", shared.at("link")).unwrap();
    assert!(matches!(write(&shared.at("link"), "x"), Err(OutFileError::Link(_))), "and its links lead where it likes");
}

#[test]
fn a_pipe_that_nobody_reads_is_refused_at_once_and_one_that_is_read_is_written() {
    let folder = Folder::new("pipe", 0o755);
    let pipe = folder.pipe("pipe");
    let start = Instant::now();
    assert!(matches!(write(&pipe, "x"), Err(OutFileError::NoReader)));
    assert!(start.elapsed() < Duration::from_secs(2));
    let path = pipe.clone();
    let reader = std::thread::spawn(move || {
        let mut file = File::open(path).unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all.len()
    });
    // More than it holds: writing waits for the reader.
    let text = "x".repeat(1 << 20);
    loop {
        match write(&pipe, &text) {
            Ok(()) => break,
            // It has not come yet.
            Err(OutFileError::NoReader) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(reader.join().unwrap(), text.len());
}

#[test]
fn what_is_replaced_keeps_its_permissions_and_leaves_nothing_beside_it() {
    let folder = Folder::new("replace", 0o755);
    let file = OutFile::find(&folder.at("page")).unwrap();
    file.may_replace().unwrap();
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
    file.replace(b"one").unwrap();
    assert_eq!(std::fs::metadata(folder.at("page")).unwrap().mode() & 0o777 & !OUTPUT, 0);
    std::fs::set_permissions(folder.at("page"), std::fs::Permissions::from_mode(0o644)).unwrap();
    file.replace(b"two").unwrap();
    assert_eq!((read(&folder.at("page")).as_str(), std::fs::read_dir(&folder.0).unwrap().count()), ("two", 1));
    assert_eq!(std::fs::metadata(folder.at("page")).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn devices_and_own_descriptors_are_opened_as_they_are() {
    for path in ["/dev/null", "/dev/stderr"] {
        let file = OutFile::find(Path::new(path)).unwrap();
        file.open(Existing::Kept, OUTPUT).unwrap();
        assert_ne!(file.kind(), Some(FileType::Symlink), "{path}");
    }
}
