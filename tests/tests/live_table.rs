//! The table of descriptors on this kernel: lifetimes, many of them, and verdicts.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use inferspan::attach::Target;
use inferspan::attach::loader::Options;
use inferspan::input::{Direction, End, Event, Input, LossStage, What};
use inferspan::output::{Speaks, Verdict};
use inferspan::source::session::Session;
use inferspan_tests::live::{Fixture, Trace, lost_at, may_trace};

const CROWD: &str = env!("CARGO_BIN_EXE_crowd");
const SOCKETS: &str = env!("CARGO_BIN_EXE_sockets");

fn assert_nothing_lost(trace: &Trace) {
    for stage in LossStage::ALL {
        assert_eq!(trace.lost(stage), 0, "lost at {}", stage.name());
    }
}

#[test]
fn no_connection_of_a_threaded_server_is_missed() {
    if !may_trace("no_connection_of_a_threaded_server_is_missed") {
        return;
    }
    let mut fixture = Fixture::start(CROWD, &["race"]);
    let trace = Trace::of(&mut fixture, &Options::default());
    assert_nothing_lost(&trace);
    let mut events: Vec<&Event> = trace.events().collect();
    events.sort_by_key(|event| event.at);
    let mut counts = BTreeMap::new();
    let mut open: BTreeMap<End, u64> = BTreeMap::new();
    for event in events {
        let name = match &event.what {
            What::Opened { end } => {
                assert!(!open.contains_key(end), "what was open is closed first");
                open.insert(*end, 0);
                "opened"
            }
            What::Data { end, direction, offset, bytes, .. } => {
                assert!(bytes.starts_with(b"request "), "nothing of the files");
                assert_eq!(*offset, Some(0));
                *open.entry(*end).or_default() += 1;
                if *direction == Direction::In { "in" } else { "out" }
            }
            What::Closed { end, moved: Some((0, 0)) } if !open.contains_key(end) => "listener",
            What::Closed { end, moved } => {
                assert_eq!(*moved, Some((13, 13)));
                assert_eq!(open.remove(end), Some(2), "one in and one out in each lifetime");
                "closed"
            }
            _ => continue,
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    assert_eq!(
        counts,
        BTreeMap::from([("closed", 40_000), ("in", 40_000), ("listener", 1), ("opened", 20_000), ("out", 40_000)])
    );
}

#[test]
fn more_descriptors_than_the_old_table_held_leave_room_for_sockets() {
    if !may_trace("more_descriptors_than_the_old_table_held_leave_room_for_sockets") {
        return;
    }
    let mut fixtures: Vec<Fixture> = (0..4).map(|_| Fixture::start(CROWD, &["many"])).collect();
    if fixtures[0].names.contains_key("refused") {
        eprintln!("SKIPPED more_descriptors_than_the_old_table_held_leave_room_for_sockets: RLIMIT_NOFILE is too low");
        return;
    }
    let targets: Vec<Target> =
        fixtures.iter().map(|fixture| Target { tgid: fixture.tgid, capture: true, libraries: false }).collect();
    let trace =
        Trace::with(&targets, &Options::default(), || fixtures.iter_mut().for_each(Fixture::go)).expect("attach");
    assert_nothing_lost(&trace);
    for fixture in &fixtures {
        let sizes = |name, direction| -> Vec<_> {
            trace.data(fixture.end(name), direction).iter().map(|(len, bytes)| (*len, bytes.len())).collect()
        };
        assert_eq!(sizes("unix", Direction::Out), [(2000, 2000)]);
        assert_eq!(sizes("client", Direction::Out), [(2000, 2000)]);
        assert_eq!(sizes("server", Direction::In), [(2000, 2000)]);
    }
}

#[test]
fn a_table_that_is_full_is_counted() {
    if !may_trace("a_table_that_is_full_is_counted") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["noise"]);
    let trace = Trace::of(&mut fixture, &Options { descriptors: 5, ..Options::default() });
    assert!(trace.lost(LossStage::Descriptors) > 0);
    assert!(!trace.holds(b"NOISE"));
}

#[test]
fn a_process_that_found_no_room_among_those_traced_is_counted() {
    // room for one: its three children, one of which is gone before anybody looks, are not followed
    if !may_trace("a_process_that_found_no_room_among_those_traced_is_counted") {
        return;
    }
    let script = "echo ready; read go; sleep 0.3 & sleep 0.3 & true & wait; echo done";
    let forks = |trace: &Trace| trace.events().filter(|event| matches!(event.what, What::Forked { .. })).count();
    let mut fixture = Fixture::start("sh", &["-c", script]);
    let trace = Trace::of(&mut fixture, &Options { targets: 1, ..Options::default() });
    assert_eq!((forks(&trace), trace.lost(LossStage::Targets)), (3, 3));

    let mut fixture = Fixture::start("sh", &["-c", script]);
    let trace = Trace::of(&mut fixture, &Options::default());
    assert_eq!(forks(&trace), 3);
    assert_nothing_lost(&trace);

    // Two to begin with.
    let mut fixtures = [Fixture::start(SOCKETS, &["calls"]), Fixture::start(SOCKETS, &["calls"])];
    let targets = fixtures.each_ref().map(|fixture| Target { tgid: fixture.tgid, capture: true, libraries: false });
    let options = Options { targets: 1, ..Options::default() };
    let trace = Trace::with(&targets, &options, || fixtures.iter_mut().for_each(Fixture::go)).expect("attach");
    assert_eq!(trace.lost(LossStage::Targets), 1);
    let has_any = |tgid| trace.events().any(|event| event.process == tgid);
    assert!(has_any(targets[0].tgid) && !has_any(targets[1].tgid));
}

#[test]
fn a_process_ends_with_its_last_thread() {
    if !may_trace("a_process_ends_with_its_last_thread") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["leader"]);
    let trace = Trace::of(&mut fixture, &Options::default());
    assert!(trace.holds(b"after the leader"));
    assert_eq!(trace.events().filter(|event| event.what == What::Exited).count(), 1);
}

#[test]
fn an_exec_by_another_thread_keeps_the_process_traced() {
    if !may_trace("an_exec_by_another_thread_keeps_the_process_traced") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["exec"]);
    let trace = Trace::of(&mut fixture, &Options::default());
    assert!(trace.events().any(|event| event.what == What::Executed));
    assert!(trace.holds(b"new after exec"));
    let offsets: Vec<_> = trace.pieces(fixture.end("kept"), Direction::Out).iter().map(|piece| piece.offset).collect();
    assert_eq!(offsets, [Some(0), Some(14)], "one lifetime before and after the reader looked");
    assert_eq!(trace.events().filter(|event| event.what == What::Exited).count(), 1);
    assert_nothing_lost(&trace);
}

/// A session on this very process.
struct Own {
    /// One at a time: tests beside each other would make and close each other's numbers.
    _alone: std::sync::MutexGuard<'static, ()>,
    session: Session,
    events: Vec<Event>,
    /// Connections that found no room.
    refused: u64,
}

impl Own {
    fn start() -> Self {
        static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let targets = [Target { tgid: std::process::id(), capture: true, libraries: false }];
        let session = Session::start(&Options::default(), &targets).expect("attach");
        Self { _alone: alone, session, events: Vec::new(), refused: 0 }
    }

    /// Collects all that has happened so far: a tick says that nothing older follows, however late the reader is on a busy machine.
    fn wait(&mut self) {
        let until = inferspan::source::ring::monotonic_ns() + 100_000_000;
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            let Ok(batch) = self.session.inputs().recv_timeout(Duration::from_millis(10)) else { continue };
            let is_past = batch.iter().any(|input| matches!(input, Input::Tick(at) if *at >= until));
            self.refused += lost_at(&batch, LossStage::Descriptors);
            self.events.extend(batch.into_iter().filter_map(|input| match input {
                Input::Event(event) => Some(event),
                _ => None,
            }));
            if is_past {
                return;
            }
        }
        panic!("the reader gave no tick for 30 s");
    }

    /// What was seen of `fd`.
    fn of(&self, fd: i32) -> Vec<&Event> {
        let own = end(fd);
        self.events.iter().filter(|event| event.what.end() == Some(own)).collect()
    }

    /// Length, captured bytes and offset of what went `to` over `fd`.
    fn data(&self, fd: i32, to: Direction) -> Vec<(u64, usize, u64)> {
        let pieces = self.of(fd).into_iter().filter_map(|event| match &event.what {
            What::Data { direction, len, bytes, offset, .. } if *direction == to => {
                Some((*len, bytes.len(), offset.expect("live")))
            }
            _ => None,
        });
        pieces.collect()
    }

    fn tell(&mut self, fd: i32, speaks: Speaks) {
        let first = self.of(fd).first().expect("an event").at;
        self.session.tell(Verdict { end: end(fd), speaks }, first);
        self.wait();
    }
}

fn end(fd: i32) -> End {
    End::of_descriptor(std::process::id(), fd as u32)
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    (client, listener.accept().expect("accept").0)
}

/// Makes `number` stand for what `fd` does. Numbers of a test's own, because tests run beside each other.
fn move_to(fd: impl std::os::fd::IntoRawFd, number: i32) {
    let fd = fd.into_raw_fd();
    // SAFETY: no pointers; the descriptor is ours, and the number nobody's.
    unsafe {
        assert_eq!(libc::dup2(fd, number), number);
        libc::close(fd);
    }
}

fn put(fd: i32, bytes: &[u8]) {
    // SAFETY: the slice holds its length.
    assert_eq!(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }, bytes.len() as isize);
}

#[test]
fn a_foreign_connection_is_seen_no_more_and_its_number_is_again() {
    if !may_trace("a_foreign_connection_is_seen_no_more_and_its_number_is_again") {
        return;
    }
    let mut own = Own::start();
    let (one, _other) = tcp();
    move_to(one, 901);
    put(901, b"first");
    own.wait();
    own.tell(901, Speaks::Foreign);
    put(901, b"second");
    own.wait();
    assert_eq!(own.data(901, Direction::Out), [(5, 5, 0)]);
    let (two, _other) = tcp();
    move_to(two, 901);
    put(901, b"a new one");
    own.wait();
    assert_eq!(own.data(901, Direction::Out), [(5, 5, 0), (9, 9, 0)]);
    assert_eq!(own.of(901).iter().filter(|event| matches!(event.what, What::Closed { .. })).count(), 1);
    // A verdict on a lifetime that is over changes nothing.
    let first = own.of(901).first().expect("an event").at;
    own.session.tell(Verdict { end: end(901), speaks: Speaks::Foreign }, first);
    own.wait();
    put(901, b"still seen");
    own.wait();
    assert_eq!(own.data(901, Direction::Out).len(), 3);
}

#[test]
fn verdicts_decide_how_much_is_captured() {
    if !may_trace("verdicts_decide_how_much_is_captured") {
        return;
    }
    let mut own = Own::start();
    let ((one, mut from_one), (two, mut from_two)) = (tcp(), UnixStream::pair().expect("pair"));
    move_to(one, 911);
    move_to(two, 912);
    let bytes = vec![7; 30_000];
    for _ in 0..2 {
        put(911, &bytes);
        from_one.read_exact(&mut bytes.clone()).expect("read");
        put(912, &bytes);
        from_two.read_exact(&mut bytes.clone()).expect("read");
        own.wait();
        own.tell(911, Speaks::Engine);
        own.tell(912, Speaks::Http);
    }
    let captured = |fd| -> Vec<usize> { own.data(fd, Direction::Out).iter().map(|(_, bytes, _)| *bytes).collect() };
    assert_eq!(captured(911), [4096, 4096, 16_384, 13_616]);
    assert_eq!(captured(912), [16_384, 13_616, 4096, 4096]);
}

#[test]
fn calls_whose_bytes_are_not_seen_are_counted_in_the_stream() {
    if !may_trace("calls_whose_bytes_are_not_seen_are_counted_in_the_stream") {
        return;
    }
    let mut own = Own::start();
    let (one, mut other) = tcp();
    move_to(one, 921);
    let file = std::fs::File::open(std::env::current_exe().expect("own path")).expect("own binary");
    let mut pipe = [0; 2];
    let piece = |bytes: &'static [u8]| libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let (first, second) = ([piece(b"abc")], [piece(b"de")]);
    // SAFETY: all-zero is a valid mmsghdr; all pointers lead to what lives across the calls.
    unsafe {
        put(921, b"start");
        assert_eq!(libc::sendfile(921, file.as_raw_fd(), std::ptr::null_mut(), 1000), 1000);
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        put(pipe[1], b"through a pipe");
        let none = std::ptr::null_mut;
        assert_eq!(libc::splice(pipe[0], none(), 921, none(), 14, 0), 14);
        let mut messages: [libc::mmsghdr; 2] = std::mem::zeroed();
        messages[0].msg_hdr.msg_iov = first.as_ptr().cast_mut();
        messages[0].msg_hdr.msg_iovlen = 1;
        messages[1].msg_hdr.msg_iov = second.as_ptr().cast_mut();
        messages[1].msg_hdr.msg_iovlen = 1;
        assert_eq!(libc::sendmmsg(921, messages.as_mut_ptr(), 2, 0), 2);
        assert_eq!(libc::pwritev2(921, second.as_ptr(), 1, -1, 0), 2);
        put(921, b"end");
        other.write_all(b"answer").expect("write");
        assert_eq!(libc::splice(921, none(), pipe[1], none(), 6, 0), 6);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
    }
    own.wait();
    let expected = [(5, 5, 0), (1000, 0, 5), (14, 0, 1005), (5, 0, 1019), (2, 2, 1024), (3, 3, 1026)];
    assert_eq!(own.data(921, Direction::Out), expected);
    assert_eq!(own.data(921, Direction::In), [(6, 0, 0)]);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::syscall(libc::SYS_close_range, 921, 921, 0) }, 0);
    own.wait();
    let last = own.of(921).last().map(|event| event.what.clone());
    assert_eq!(last, Some(What::Closed { end: end(921), moved: Some((6, 1029)) }));
    assert_eq!(own.refused, 0);
}

#[test]
fn a_reset_is_told_by_the_message_calls_too() {
    if !may_trace("a_reset_is_told_by_the_message_calls_too") {
        return;
    }
    let mut own = Own::start();
    let (one, mut other) = tcp();
    move_to(one, 931);
    other.write_all(b"unread").expect("write");
    put(931, b"also unread");
    own.wait();
    drop(other);
    let mut byte = [0u8; 16];
    let mut vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 16 };
    // SAFETY: all-zero is a valid msghdr; it points to a live vector.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        while libc::recvmsg(931, &raw mut header, 0) > 0 {}
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ECONNRESET));
    }
    own.wait();
    assert_eq!(own.of(931).iter().filter(|event| matches!(event.what, What::PeerClosed { .. })).count(), 1);
}

#[test]
fn a_socket_that_came_over_another_is_seen() {
    if !may_trace("a_socket_that_came_over_another_is_seen") {
        return;
    }
    let mut own = Own::start();
    let ((from, to), (sent, _other)) = (UnixStream::pair().expect("pair"), UnixStream::pair().expect("pair"));
    let received = pass(&from, &to, sent.as_raw_fd());
    own.wait();
    put(received, &[5; 1000]);
    own.wait();
    assert_eq!(own.data(received, Direction::Out), [(1000, 1000, 0)]);
}

/// Sends `fd` over a unix socket; gives the number under which it arrives.
fn pass(from: &UnixStream, to: &UnixStream, fd: i32) -> i32 {
    let mut byte = 1u8;
    let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 3];
    // SAFETY: all-zero is a valid msghdr; `control` holds one descriptor's message and is aligned for it.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        (*message).cmsg_level = libc::SOL_SOCKET;
        (*message).cmsg_type = libc::SCM_RIGHTS;
        (*message).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(message).cast::<i32>().write_unaligned(fd);
        assert_eq!(libc::sendmsg(from.as_raw_fd(), &raw const header, 0), 1);
        assert_eq!(libc::recvmsg(to.as_raw_fd(), &raw mut header, 0), 1);
        libc::CMSG_DATA(libc::CMSG_FIRSTHDR(&raw const header)).cast::<i32>().read_unaligned()
    }
}
