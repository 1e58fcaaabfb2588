//! The texts of `/proc`, parsed.
//!
//! Enters: the bytes of one file. Leaves: the few fields that discovery needs. Names and paths in them are chosen by the
//! target, so nothing here trusts their content: a name may hold spaces, parentheses, colons and invalid UTF-8. A line
//! that does not parse is skipped; a file that does not parse gives `None`. (The `procfs` crate cuts `Name:` at the second
//! colon, which engines' titles have, and refuses a whole table for one odd line; hence own parsers.)

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use crate::sanitise::printable;

/// `PF_KTHREAD` in the flags of `/proc/PID/stat` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub pid: u32,
    pub comm: String,
    pub state: char,
    pub parent: u32,
    pub kernel_thread: bool,
    /// Field 22, clock ticks since boot.
    pub start_ticks: u64,
}

/// The name is between the first `(` and the last `)`, whatever it holds.
pub fn stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|&byte| byte == b'(')?;
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let pid = ascii(text.get(..open)?)?.trim().parse().ok()?;
    let comm = printable(text.get(open + 1..close)?);
    let fields: Vec<&str> = ascii(text.get(close + 1..)?)?.split_ascii_whitespace().collect();
    // proc(5) numbers the fields from 1; the state is field 3.
    let field = |number: usize| fields.get(number - 3).copied();
    let flags: u32 = field(9)?.parse().ok()?;
    Some(Stat {
        pid,
        comm,
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        kernel_thread: flags & PF_KTHREAD != 0,
        start_ticks: field(22)?.parse().ok()?,
    })
}

/// What a process has used, from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In user and kernel mode, clock ticks.
    pub cpu_ticks: u64,
    pub resident_pages: u64,
}

pub fn usage(text: &[u8]) -> Option<Usage> {
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = ascii(text.get(close + 1..)?)?.split_ascii_whitespace();
    // proc(5): utime is field 14, stime 15, rss 24; the first here is field 3.
    let (user, system) = (fields.nth(11)?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    Some(Usage { cpu_ticks: user.checked_add(system)?, resident_pages: fields.nth(8)?.parse().ok()? })
}

/// `/proc/PID/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Thread group: the PID of the process that a thread belongs to.
    pub tgid: u32,
    /// PIDs in every namespace from the reader's inwards; one number when there is no inner one.
    pub namespace_pids: Vec<u32>,
    /// Effective user.
    pub euid: Option<u32>,
    /// Effective capabilities, a bit each.
    pub effective: u64,
    /// Capabilities that it may take up, a bit each.
    pub permitted: u64,
    /// Nothing that it executes gives it more.
    pub no_new_privs: bool,
    /// Signals that it ignores, a bit each; the lowest is signal 1.
    pub ignored: u64,
}

impl Status {
    pub fn ignores(&self, signal: i32) -> bool {
        u32::try_from(signal - 1).is_ok_and(|bit| self.ignored.checked_shr(bit).is_some_and(|bits| bits & 1 == 1))
    }
}

pub fn status(text: &[u8]) -> Option<Status> {
    let mut status = Status::default();
    let mut tgid = None;
    for line in text.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (key, value) = line.split_at(colon);
        let Some(value) = ascii(value.get(1..).unwrap_or_default()) else { continue };
        let mut words = value.split_ascii_whitespace();
        match key {
            b"Tgid" => tgid = words.next().and_then(|word| word.parse().ok()),
            b"NSpid" => status.namespace_pids = words.filter_map(|word| word.parse().ok()).collect(),
            b"Uid" => status.euid = words.nth(1).and_then(|word| word.parse().ok()),
            b"CapEff" => status.effective = hexadecimal(words.next()),
            b"CapPrm" => status.permitted = hexadecimal(words.next()),
            b"NoNewPrivs" => status.no_new_privs = words.next() == Some("1"),
            b"SigIgn" => status.ignored = hexadecimal(words.next()),
            _ => {}
        }
    }
    status.tgid = tgid?;
    Some(status)
}

fn hexadecimal(word: Option<&str>) -> u64 {
    word.and_then(|word| u64::from_str_radix(word, 16).ok()).unwrap_or_default()
}

/// One line of `/proc/PID/maps` that maps a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub executable: bool,
    pub writable: bool,
    pub offset: u64,
    /// Device, major and minor.
    pub device: (u32, u32),
    pub inode: u64,
    /// As the process sees it, without the ` (deleted)`.
    pub path: PathBuf,
    pub deleted: bool,
}

/// The lines of `/proc/PID/maps` that map a file; anonymous memory, the stack and the vdso are left out.
pub fn maps(text: &[u8]) -> impl Iterator<Item = Mapping> + '_ {
    text.split(|&byte| byte == b'\n').filter_map(mapping)
}

fn mapping(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        let start = rest.iter().position(|&byte| byte != b' ')?;
        rest = &rest[start..];
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        ascii(word)
    };
    let (start, end) = word()?.split_once('-')?;
    let permissions = word()?;
    let offset = word()?;
    let (major, minor) = word()?.split_once(':')?;
    let inode = word()?.parse().ok()?;
    let path = rest.trim_ascii_start();
    if !path.starts_with(b"/") {
        return None;
    }
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        writable: permissions.as_bytes().get(1) == Some(&b'w'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        // The kernel writes a newline in a path as `\012` (seq_file_path); nothing else is escaped.
        path: PathBuf::from(std::ffi::OsString::from_vec(replace(path, br"\012", b"\n"))),
        deleted,
    })
}

/// One line of `/proc/PID/net/tcp` or `tcp6` that is established or listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    pub inode: u64,
    pub local: SocketAddr,
    /// `None`: it listens.
    pub peer: Option<SocketAddr>,
}

/// `TCP_ESTABLISHED`, `TCP_CLOSE_WAIT` and `TCP_LISTEN` of include/net/tcp_states.h: the states in which data still moves.
const ESTABLISHED: u8 = 0x01;
const CLOSE_WAIT: u8 = 0x08;
const LISTEN: u8 = 0x0A;

pub fn tcp(text: &[u8]) -> impl Iterator<Item = Tcp> + '_ {
    text.split(|&byte| byte == b'\n').skip(1).filter_map(|line| {
        let fields: Vec<&str> = ascii(line)?.split_ascii_whitespace().collect();
        let local = socket_address(fields.get(1)?)?;
        let peer = socket_address(fields.get(2)?)?;
        let peer = match u8::from_str_radix(fields.get(3)?, 16).ok()? {
            LISTEN => None,
            ESTABLISHED | CLOSE_WAIT => Some(peer),
            _ => return None,
        };
        Some(Tcp { inode: fields.get(9)?.parse().ok()?, local, peer })
    })
}

/// `0100007F:1FBB`: the address as native-endian 32-bit words in hexadecimal, the port as a number.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let address = match words.as_slice() {
        [v4] => IpAddr::V4(Ipv4Addr::from(*v4)),
        [a, b, c, d] => {
            let bytes: [u8; 16] = [*a, *b, *c, *d].concat().try_into().ok()?;
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// One line of `/proc/PID/net/unix`: a stream socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unix {
    pub inode: u64,
    pub listening: bool,
    pub path: Option<PathBuf>,
}

/// `SOCK_STREAM`, and `__SO_ACCEPTCON` among the flags (include/linux/net.h).
const SOCK_STREAM: u16 = 1;
const SO_ACCEPTCON: u32 = 0x0001_0000;

pub fn unix(text: &[u8]) -> impl Iterator<Item = Unix> + '_ {
    text.split(|&byte| byte == b'\n').skip(1).filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path; the path may hold anything.
        let mut fields = line.splitn(2, |&byte| byte == b':');
        fields.next()?;
        let mut rest = fields.next()?;
        let mut word = || {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after;
            ascii(word)
        };
        let (_references, _protocol) = (word()?, word()?);
        let flags = u32::from_str_radix(word()?, 16).ok()?;
        if u16::from_str_radix(word()?, 16).ok()? != SOCK_STREAM {
            return None;
        }
        let _state = word()?;
        let inode = word()?.parse().ok()?;
        let path = rest.strip_prefix(b" ").filter(|path| !path.is_empty());
        let path = path.map(|path| PathBuf::from(OsStr::from_bytes(path)));
        Some(Unix { inode, listening: flags & SO_ACCEPTCON != 0, path })
    })
}

/// The inode in `socket:[52308]`, what a descriptor of a socket links to.
pub fn socket_inode(link: &[u8]) -> Option<u64> {
    ascii(link)?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inode in `net:[4026531833]`, what a namespace links to.
pub fn namespace_inode(link: &[u8]) -> Option<u64> {
    ascii(link)?.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// The GPU that a device file belongs to: `nvidia0` of `/dev/nvidia0`, `renderD128` of `/dev/dri/renderD128`.
pub fn gpu(link: &[u8]) -> Option<String> {
    let link = ascii(link)?;
    let numbered = |name: &str, stem: &str| {
        let digits = name.strip_prefix(stem)?;
        (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| name.to_owned())
    };
    link.strip_prefix("/dev/dri/")
        .and_then(|name| numbered(name, "renderD"))
        .or_else(|| link.strip_prefix("/dev/").and_then(|name| numbered(name, "nvidia")))
}

/// The `hidepid=` option of the `/proc` in a mount table, when it hides anything.
pub fn hidepid(mounts: &str) -> Option<&str> {
    let mut options = mounts.lines().rev().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(1) == Some(&"/proc") && fields.get(2) == Some(&"proc")).then(|| fields.get(3).copied()).flatten()
    });
    // The last mount over a place is the one that is seen.
    options
        .next()?
        .split(',')
        .find_map(|option| option.strip_prefix("hidepid="))
        .filter(|value| !matches!(*value, "0" | "off"))
}

/// What a time namespace adds to `CLOCK_MONOTONIC`, ns, from `/proc/PID/timens_offsets` (`monotonic  -3600  0`).
pub fn monotonic_offset_ns(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("monotonic"))?;
    let mut words = line.split_ascii_whitespace().map(|word| word.parse::<i64>().ok());
    let (seconds, nanoseconds) = (words.next()??, words.next()??);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// The value of one variable in `/proc/PID/environ`; the rest of the block is not looked at.
pub fn variable(environ: &[u8], name: &str) -> Option<String> {
    environ
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .map(printable)
        .filter(|value| !value.is_empty())
}

/// The words of `/proc/PID/cmdline`. A process title fills the rest of the block with zeros; those are dropped.
pub fn arguments(cmdline: &[u8]) -> Vec<String> {
    let end = cmdline.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    cmdline[..end].split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn ascii(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            rest = after;
        } else {
            out.push(first);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
