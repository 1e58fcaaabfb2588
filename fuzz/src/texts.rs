//! What other programs and the kernel say: ring records, the texts of `/proc`, BTF.

use inferspan::attach::btf::offsets;
use inferspan::core::Config;
use inferspan::decode::record::{self, Record, net::Class};
use inferspan::input::{Input, What};
use inferspan::proc::text;
use inferspan::run::pipeline::Pipeline;

use crate::bytes::Bytes;

/// Ring records one after the other, each after its length; what decodes goes through the pipeline.
pub fn records(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let mut pipeline = Pipeline::new(1, 0, &Config::default());
    while !bytes.is_over() {
        let raw = bytes.piece(usize::MAX);
        let decoded = record::decode(raw);
        let at = record::time_of(raw);
        let event = match decoded {
            Ok(Record::Event(event)) => event,
            Ok(Record::Descriptor { event, class, .. }) => {
                assert_eq!(Class::of_wire(class.to_wire()), Some(class));
                event
            }
            Ok(Record::Received { .. } | Record::ClosedRange { .. }) => continue,
            Err(refused) => {
                assert!(!refused.to_string().is_empty());
                continue;
            }
        };
        assert_eq!(at, Some(event.at), "the time is read before the rest");
        if let What::Data { len, bytes, .. } = &event.what {
            assert!(*len >= 1 && bytes.len() as u64 <= *len && bytes.len() <= raw.len());
        }
        pipeline.push(None, Input::Event(event));
    }
    while pipeline.finish_part() {}
}

/// Every text of `/proc`, each parser on the same bytes.
pub fn proc_text(bytes: &[u8]) {
    let _ = (text::stat(bytes), text::usage(bytes), text::variable(bytes, "VLLM"));
    if let Some(status) = text::status(bytes) {
        (-1..=65).for_each(|signal| {
            let _ = status.ignores(signal);
        });
    }
    for mapping in text::maps(bytes) {
        assert!(mapping.path.as_os_str().len() <= bytes.len());
    }
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(text::tcp(bytes).count() <= lines && text::unix(bytes).count() <= lines);
    let _ = (text::socket_inode(bytes), text::namespace_inode(bytes), text::gpu(bytes));
    assert!(text::arguments(bytes).len() <= bytes.len());
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (text::hidepid(text), text::monotonic_offset_ns(text));
    }
}

/// A kernel's type information: what a part of it says is what all of it says, or nothing.
pub fn btf(bytes: &[u8]) {
    const MEMBERS: [(&str, &str); 4] =
        [("task_struct", "pid"), ("task_struct", "tgid"), ("fdtable", "fd"), ("signal_struct", "live")];
    let found = offsets(bytes, &MEMBERS);
    assert_eq!(found.len(), MEMBERS.len());
    assert_eq!(found, offsets(bytes, &MEMBERS), "the same bytes say the same");
}
