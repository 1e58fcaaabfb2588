use super::*;

#[test]
fn stat_reads_names_with_spaces_parentheses_and_bad_utf8() {
    let tail =
        " S 20777 20777 20777 0 -1 4194304 1701 0 2 0 2 0 0 0 30 10 1 0 77079 18939904 3187 18446744073709551615";
    for (name, expected) in [
        (&b"vllm"[..], "vllm"),
        (b"VLLM::EngineCor", "VLLM::EngineCor"),
        (b"tmux: server", "tmux: server"),
        (b"a) R 1 (b", "a) R 1 (b"),
        (b"(sd-pam)", "(sd-pam)"),
        (b")", ")"),
        (b"", ""),
        (b"\xff\x1b[31m", "\u{FFFD}\u{FFFD}[31m"),
    ] {
        let text = [b"21230 (", name, b")", tail.as_bytes()].concat();
        let stat = stat(&text).expect("parses");
        assert_eq!((stat.pid, stat.comm.as_str(), stat.state, stat.parent), (21230, expected, 'S', 20777));
        assert_eq!((stat.start_ticks, stat.kernel_thread), (77079, false));
    }
    let kernel = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 0 0 0 0";
    assert!(stat(kernel).expect("parses").kernel_thread);
    for broken in [&b""[..], b"1", b"1 (", b"1 ()", b"1 (a) S 1", b"x (a) S 1 1 1 1", b")("] {
        assert_eq!(stat(broken), None, "{broken:?}");
    }
}

#[test]
fn status_keeps_the_namespace_pids_and_is_not_confused_by_colons_in_the_name() {
    let text = b"Name:\tVLLM::EngineCor\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t4711\nPid:\t4711\nUid:\t1000\t1001\t1000\t1000\nNSpid:\t4711\t12\t3\nSigIgn:\t0000000000001001\nCapPrm:\t000001ffffffffff\nNoNewPrivs:\t1\nCapEff:\t000001ffffffffff\n";
    let status = status(text).expect("parses");
    assert_eq!((status.tgid, status.euid), (4711, Some(1001)));
    assert_eq!(status.namespace_pids, [4711, 12, 3]);
    assert_eq!((status.effective, status.permitted), (0x1ff_ffff_ffff, 0x1ff_ffff_ffff));
    assert!(status.no_new_privs);
    assert_eq!([1, 2, 13, 0, -1, 99].map(|signal| status.ignores(signal)), [true, false, true, false, false, false]);
    assert_eq!(super::status(b"Name:\tx\n"), None);
    let named_tgid = super::status(b"Name:\tTgid:\nTgid:\t8\n").expect("parses");
    assert_eq!(named_tgid.tgid, 8);
}

#[test]
fn maps_lines_of_every_shape() {
    let text = b"\
7f6784e00000-7f67850c1000 r--p 00000000 fe:00 10038069                   /venv/lib/python3.11/site-packages/tokenizers/tokenizers.abi3.so
7f67850c1000-7f6785514000 r-xp 002c0000 fe:00 10038069                   /venv/lib/python3.11/site-packages/tokenizers/tokenizers.abi3.so
7f6785514000-7f6785590000 r-xp 00712000 08:101 4 /a dir/with spaces.so (deleted)
7f6785514000-7f6785590000 r-xp 00001000 08:01 5 /new\\012line.so
7f6785590000-7f6785599000 rw-p 00000000 00:00 0
7ffd0b5ca000-7ffd0b5eb000 rw-p 00000000 00:00 0                          [stack]
7f0000000000-7f0000001000 rw-s 00000000 00:01 1025 /dev/shm/psm_1 (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
nonsense
7f0000000000-7f00
";
    let found: Vec<Mapping> = maps(text).collect();
    assert_eq!(found.len(), 5);
    assert_eq!((found[0].executable, found[0].inode, found[0].device), (false, 10_038_069, (0xfe, 0)));
    assert_eq!((found[1].executable, found[1].offset, found[1].start), (true, 0x2c_0000, 0x7f67_850c_1000));
    assert_eq!((found[2].path.to_str(), found[2].deleted), (Some("/a dir/with spaces.so"), true));
    assert_eq!(found[2].device, (8, 0x101));
    assert_eq!(found[3].path.to_str(), Some("/new\nline.so"));
    assert!(found[4].deleted && !found[4].executable);
}

#[test]
fn tcp_tables_give_listeners_and_live_connections() {
    let v4 = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1FBB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 52310 1 000000002f38212a 100 0 0 10 0
   1: 0100007F:1FBB 0100007F:A433 01 00000000:00000000 00:00000000 00000000     0        0 53661 1 000000008f1f77ea 20 0 0 10 -1
   2: 0100007F:1FBB 0100007F:A434 06 00000000:00000000 03:00000000 00000000     0        0 0 3 000000008f1f77ea
";
    let found: Vec<Tcp> = tcp(v4).collect();
    assert_eq!(found.len(), 2, "TIME_WAIT belongs to nobody");
    assert_eq!((found[0].inode, found[0].local, found[0].peer), (52310, "127.0.0.1:8123".parse().unwrap(), None));
    assert_eq!(found[1].peer, Some("127.0.0.1:42035".parse().unwrap()));
    let v6 = b"header
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7 1 0
   1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000200007F:1F91 01 00000000:00000000 00:00000000 00000000 0 0 8 1 0
   2: 000080FE00000000FF005450D0A2EFFE:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 9 1 0
";
    let found: Vec<Tcp> = tcp(v6).collect();
    assert_eq!(found[0].local, "[::]:8080".parse().unwrap());
    assert_eq!(found[1].local, "127.0.0.1:8080".parse().unwrap(), "a mapped address reads as what it is");
    assert_eq!(found[1].peer, Some("127.0.0.2:8081".parse().unwrap()));
    assert_eq!(found[2].local, "[fe80::5054:ff:feef:a2d0]:8080".parse().unwrap());
}

#[test]
fn unix_table_gives_stream_sockets_with_whatever_path() {
    let text = b"Num       RefCount Protocol Flags    Type St Inode Path
0000000063188c54: 00000003 00000000 00000000 0001 03 52308
000000007632e21a: 00000002 00000000 00010000 0001 01 52486 /tmp/ee03b404-3971-4579-8fb1-efcf625bfd97
000000007632e21b: 00000002 00000000 00000000 0001 03   647 /run/a b\xff
000000007632e21c: 00000002 00000000 00000000 0002 01 9 /dev/log
000000007632e21d: 00000002 00000000 00000000 0001 03 10 @abstract
";
    let found: Vec<Unix> = unix(text).collect();
    assert_eq!(found.iter().map(|unix| unix.inode).collect::<Vec<_>>(), [52308, 52486, 647, 10]);
    assert_eq!(found.iter().map(|unix| unix.listening).collect::<Vec<_>>(), [false, true, false, false]);
    assert_eq!(found[0].path, None);
    assert_eq!(found[1].path.as_deref(), Some("/tmp/ee03b404-3971-4579-8fb1-efcf625bfd97".as_ref()));
    assert_eq!(found[2].path.as_ref().map(|path| path.as_os_str().as_bytes()), Some(&b"/run/a b\xff"[..]));
}

#[test]
fn links_arguments_and_variables() {
    assert_eq!(socket_inode(b"socket:[52308]"), Some(52308));
    assert_eq!(socket_inode(b"pipe:[52308]"), None);
    assert_eq!(namespace_inode(b"net:[4026531833]"), Some(4_026_531_833));
    for (link, expected) in [
        (&b"/dev/nvidia0"[..], Some("nvidia0")),
        (b"/dev/nvidia17", Some("nvidia17")),
        (b"/dev/nvidiactl", None),
        (b"/dev/nvidia-uvm", None),
        (b"/dev/dri/renderD128", Some("renderD128")),
        (b"/dev/null", None),
    ] {
        assert_eq!(gpu(link).as_deref(), expected, "{link:?}");
    }
    assert_eq!(arguments(b"VLLM::EngineCore\0\0\0\0"), ["VLLM::EngineCore"]);
    assert_eq!(arguments(b"a\0\0b\0"), ["a", "", "b"]);
    assert!(arguments(b"").is_empty() && arguments(b"\0\0").is_empty());
    let environ = b"A=1\0OTEL_SERVICE_NAME_X=no\0OTEL_SERVICE_NAME=chat\x1b[0m\0B=2\0";
    assert_eq!(variable(environ, "OTEL_SERVICE_NAME").as_deref(), Some("chat\u{FFFD}[0m"));
    assert_eq!(variable(b"OTEL_SERVICE_NAME=\0", "OTEL_SERVICE_NAME"), None);
}

#[test]
fn strings_of_the_target_cannot_drive_a_terminal() {
    assert_eq!(
        printable("ok \u{1b}]0;x\u{7}\u{202e}\u{200b}\n".as_bytes()),
        "ok \u{FFFD}]0;x\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}"
    );
    assert_eq!(printable(&vec![b'a'; 1 << 20]).chars().count(), 200);
    assert_eq!(printable("é€".as_bytes()), "é€");
}

#[test]
fn hidepid_is_read_from_the_mount_that_is_seen() {
    for (mounts, expected) in [
        ("proc /proc proc rw,nosuid,hidepid=2,gid=5 0 0", Some("2")),
        ("proc /proc proc rw,hidepid=invisible 0 0\n", Some("invisible")),
        ("proc /proc proc rw,hidepid=2 0 0\nproc /proc proc rw 0 0", None),
        ("proc /proc proc rw,hidepid=off 0 0", None),
        ("proc /other/proc proc rw,hidepid=2 0 0\nsysfs /sys sysfs rw 0 0", None),
        ("", None),
    ] {
        assert_eq!(hidepid(mounts), expected, "{mounts}");
    }
}

#[test]
fn time_namespaces_say_what_they_add() {
    assert_eq!(monotonic_offset_ns("monotonic           0         0\nboottime            0         0\n"), Some(0));
    assert_eq!(monotonic_offset_ns("monotonic      -3600 500000000\nboottime 7 0\n"), Some(-3_599_500_000_000));
    assert_eq!(monotonic_offset_ns("monotonic 9223372036854775807 0"), None);
    assert_eq!(monotonic_offset_ns("boottime 1 0"), None);
    assert_eq!(monotonic_offset_ns(""), None);
}

#[test]
fn usage_is_read_behind_a_name_that_holds_anything() {
    let line = b"7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 9 9 20 0 1 0 100 4096 33 18446744073709551615";
    assert_eq!(usage(line), Some(Usage { cpu_ticks: 200, resident_pages: 33 }));
    assert_eq!(usage(b"7 (a) S 1"), None);
}
