//! The house stands as docs/architecture.md draws it: no import cycle between rooms, no file over 500 lines, no line of prose over 140
//! columns, and only its own room names an engine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use inferspan::engine::ENGINES;
use inferspan_tests::signals::repository;

/// Every file below a folder whose name ends so.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of the repository").map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(files(&path, ending));
        } else if path.to_str().is_some_and(|path| path.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What of a file is built into the binary: all before the tests that stand at its end. Tests in a file of their own are declared anywhere.
fn without_tests(text: &str) -> &str {
    const MARK: &str = "\n#[cfg(test)]\n";
    let stands_here =
        |at: &usize| text[at + MARK.len()..].lines().next().is_some_and(|line| line.ends_with("mod tests {"));
    let end = text.match_indices(MARK).map(|(at, _)| at).find(stands_here);
    &text[..end.unwrap_or(text.len())]
}

/// The repository itself: a path through `tests` would make all of it tests.
fn root() -> PathBuf {
    repository("").canonicalize().expect("the repository")
}

fn source() -> PathBuf {
    root().join("tracer-user/src")
}

/// The room of a file: the first name below `src`.
fn room(path: &Path) -> String {
    let below = path.strip_prefix(source()).expect("below the source");
    let first = below.components().next().expect("a name").as_os_str().to_str().expect("UTF-8");
    first.trim_end_matches(".rs").to_owned()
}

/// Which rooms each room imports from.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let files: Vec<PathBuf> = files(&source(), ".rs")
        .into_iter()
        .filter(|path| !path.strip_prefix(source()).is_ok_and(|below| below.to_string_lossy().contains("tests")))
        .collect();
    let rooms: BTreeSet<String> = files.iter().map(|path| room(path)).collect();
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in &files {
        let (from, text) = (room(path), fs::read_to_string(path).expect("a source file"));
        if matches!(from.as_str(), "main" | "lib") {
            continue;
        }
        let code = without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for used in line.split("crate::").skip(1) {
                let name: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if rooms.contains(&name) && name != from {
                    imports.entry(from.clone()).or_default().insert(name);
                }
            }
        }
    }
    imports
}

#[test]
fn no_room_imports_from_itself_over_others() {
    fn visit<'a>(
        room: &'a str,
        imports: &'a BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) {
        assert!(!way.contains(&room), "a cycle: {} -> {room}", way.join(" -> "));
        if !done.insert(room) {
            return;
        }
        way.push(room);
        for next in imports.get(room).into_iter().flatten() {
            // On the way here again is a cycle, whether or not it was visited.
            assert!(!way.contains(&next.as_str()), "a cycle: {} -> {next}", way.join(" -> "));
            visit(next, imports, way, done);
        }
        way.pop();
    }
    let imports = imports();
    assert!(imports.len() > 10, "{imports:?}");
    for room in imports.keys() {
        visit(room, &imports, &mut Vec::new(), &mut BTreeSet::new());
    }
    let of = |room: &str| imports.get(room).cloned().unwrap_or_default();
    let pure = [
        "order", "clock", "decode", "engine", "model", "core", "sample", "output", "input", "elf", "kernel", "store",
        "why",
    ];
    for pure in pure {
        for world in ["source", "attach", "discover", "proc", "export", "run", "cli"] {
            assert!(!of(pure).contains(world), "{pure} is pure and imports from {world}");
        }
    }
    assert!(imports.iter().all(|(_, to)| !to.contains("cli")), "nothing imports from the command line");
}

#[test]
fn no_file_is_over_500_lines_and_no_prose_over_140_columns() {
    let root = root();
    let code = ["tracer-ebpf/src", "tracer-user/src", "xtask/src", "fuzz/src", "tests"];
    for path in code.iter().flat_map(|folder| files(&root.join(folder), ".rs")) {
        let lines = fs::read_to_string(&path).expect("a source file").lines().count();
        assert!(lines <= 500, "{} has {lines} lines", path.display());
    }
    let documents = ["docs", "tests/fixtures"].iter().flat_map(|folder| files(&root.join(folder), ".md"));
    for path in documents.chain([root.join("README.md"), root.join("CONTRIBUTING.md")]) {
        let text = fs::read_to_string(&path).expect("a document");
        let mut is_sample = false;
        for (number, line) in text.lines().enumerate() {
            is_sample ^= line.starts_with("```");
            assert!(is_sample || line.chars().count() <= 140, "{}:{}", path.display(), number + 1);
        }
    }
}

#[test]
fn the_tests_that_the_security_page_names_are_there() {
    let page = fs::read_to_string(root().join("docs/security.md")).expect("docs/security.md");
    let code: Vec<(PathBuf, String)> = ["tracer-user/src", "fuzz/src", "tests"]
        .iter()
        .flat_map(|folder| files(&root().join(folder), ".rs"))
        .map(|path| (path.clone(), fs::read_to_string(path).expect("a source file")))
        .collect();
    let mut named = 0;
    for word in page.split('`').skip(1).step_by(2) {
        let is_name = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if is_name && word.matches('_').count() >= 3 {
            named += 1;
            assert!(code.iter().any(|(_, text)| text.contains(&format!("fn {word}("))), "no test is called {word}");
        } else if Path::new(word).extension().is_some_and(|of| of == "rs") {
            assert!(code.iter().any(|(path, _)| path.ends_with(word)), "no file is called {word}");
        }
    }
    assert!(named > 10, "{named} tests are named");
}

#[test]
fn no_code_outside_its_room_names_an_engine() {
    let engines = source().join("engine");
    for path in files(&source(), ".rs") {
        let is_registration = path == engines.join("mod.rs");
        if ENGINES.iter().any(|engine| path.starts_with(engines.join(engine.name())))
            || is_registration
            || path.to_str().is_some_and(|p| p.contains("tests"))
        {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let names_one = ENGINES.iter().any(|engine| code.to_lowercase().contains(engine.name()));
            assert!(!names_one, "{}:{}: {line}", path.display(), number + 1);
        }
    }
}

/// A verb is its file in `cli`, the folder of that name, and what it shares with others there.
#[test]
fn a_verb_parses_and_prints_in_under_200_lines() {
    let cli = source().join("cli");
    let mut shares: BTreeMap<String, (usize, BTreeSet<String>)> = BTreeMap::new();
    for path in files(&cli, ".rs") {
        let below = path.strip_prefix(&cli).expect("below it");
        let name = below.components().next().expect("a name").as_os_str().to_str().expect("UTF-8");
        let text = fs::read_to_string(&path).expect("a source file");
        let code = without_tests(&text);
        let (lines, parts) = shares.entry(name.trim_end_matches(".rs").to_owned()).or_default();
        *lines += code.lines().count();
        let used = code.lines().filter_map(|line| line.strip_prefix("use super::")?.split_once("::"));
        parts.extend(used.map(|(name, _)| name.to_owned()));
    }
    let (verbs, _) = shares.remove("mod").expect("the list of verbs");
    assert!(verbs < 200 && shares.len() > 6, "{shares:?}");
    for (verb, (own, _)) in &shares {
        let mut parts = BTreeSet::from([verb.as_str()]);
        while let Some(more) =
            parts.iter().flat_map(|part| &shares[*part].1).find(|part| !parts.contains(part.as_str()))
        {
            parts.insert(more);
        }
        let lines: usize = parts.iter().map(|part| shares[*part].0).sum();
        assert!(lines < 200, "{verb} has {own} lines of its own and {lines} with {parts:?}");
    }
}
