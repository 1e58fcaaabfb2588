//! The page of the live view: files that are built into the binary.

mod files;

/// A file of the page.
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    /// Behind `/ui/`; that of the page itself is `index.html`, which `/` shows too.
    pub(super) name: &'static str,
    pub(super) content_type: &'static str,
    pub(super) bytes: &'static [u8],
}

/// The file of this name.
pub(super) fn file(name: &str) -> Option<&'static File> {
    files::FILES.iter().find(|file| file.name == name)
}
