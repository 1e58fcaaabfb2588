//! docs/signals.md as data, so that tests can hold it against what the code emits.
//!
//! A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; its first column holds names in backticks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// docs/signals.md.
pub fn document() -> anyhow::Result<String> {
    let path = repository("docs/signals.md");
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// What stands between the marks of `name`.
pub fn section<'a>(document: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let (begin, end) = marks(name);
    let from = document.find(&begin).with_context(|| format!("docs/signals.md has no {begin}"))? + begin.len();
    let length = document[from..].find(&end).with_context(|| format!("docs/signals.md has no {end}"))?;
    Ok(document[from..from + length].trim_matches('\n'))
}

/// The document with another section.
pub fn with_section(document: &str, name: &str, text: &str) -> anyhow::Result<String> {
    // Both marks are there, in this order.
    section(document, name)?;
    let (begin, end) = marks(name);
    let (before, rest) = document.split_once(&begin).context("the first mark")?;
    let (_, after) = rest.split_once(&end).context("the second mark")?;
    Ok(format!("{before}{begin}\n{}\n{end}{after}", text.trim_matches('\n')))
}

/// Names in the first column of a section's table, in order.
pub fn names(document: &str, name: &str) -> anyhow::Result<Vec<String>> {
    let rows = section(document, name)?.lines().filter(|line| line.starts_with("| `"));
    Ok(rows.filter_map(|row| Some(row.split('`').nth(1)?.to_owned())).collect())
}

fn marks(name: &str) -> (String, String) {
    (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"))
}

/// A metric as an exposition shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// Label names in the order they are shown, without `le`.
    pub labels: Vec<String>,
    /// Names of its samples, `_bucket` and the like included.
    pub samples: Vec<String>,
}

/// The families of a text in format 0.0.4, by name.
pub fn families(plain: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = "";
    for line in plain.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            current = name;
            families.entry(current.to_owned()).or_default().help = help.into();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            current = name;
            families.entry(current.to_owned()).or_default().kind = kind.into();
        } else if !line.is_empty() {
            let family = families.entry(current.to_owned()).or_default();
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            push_new(&mut family.samples, &line[..end]);
            for label in label_names(&line[end..]) {
                if label != "le" {
                    push_new(&mut family.labels, label);
                }
            }
        }
    }
    families
}

fn push_new(list: &mut Vec<String>, text: &str) {
    if !list.iter().any(|known| known == text) {
        list.push(text.to_owned());
    }
}

/// Names in `{a="x",b="y"} 1`.
fn label_names(rest: &str) -> Vec<&str> {
    let Some(mut rest) = rest.strip_prefix('{') else { return Vec::new() };
    let mut names = Vec::new();
    while let Some((name, after)) = rest.split_once("=\"") {
        names.push(name.trim_start_matches(','));
        let mut escaped = false;
        let end = after.find(|c: char| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        });
        let Some(end) = end else { break };
        rest = &after[end + 1..];
        if rest.starts_with('}') {
            break;
        }
    }
    names
}
