//! The table of files.

use super::File;

const HTML: &str = "text/html; charset=utf-8";

pub(super) static FILES: [File; 1] =
    [File { name: "index.html", content_type: HTML, bytes: include_bytes!("index.html") }];
