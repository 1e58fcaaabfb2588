//! `--kernels-out`: one JSON object a line for each process and CUDA kernel, when the process or the run is over. The fields are those of
//! docs/signals.md. A file that takes no more than waits for it loses rows, which is said at the end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::access_log;
use super::lines::{Fate, Lines};
use super::log_file::LogFile;
use super::sink::{Context, Sink};
use crate::out_file::Existing;
use crate::output::cuda::KernelRow;

/// Rows that wait for the file at most; a server has some hundred.
const QUEUE_ROWS: u64 = 65_536;

#[derive(Debug)]
struct Kernels {
    about: String,
    lines: Lines<KernelRow>,
    /// Rows that found no room.
    late: Arc<AtomicU64>,
}

impl Sink for Kernels {
    fn kernel(&mut self, row: &KernelRow) {
        self.lines.push(&Arc::new(row.clone()), 1);
    }

    fn finish(self: Box<Self>) -> Option<String> {
        let Self { about, lines, late } = *self;
        let failure = lines.finish();
        let late = late.load(Relaxed);
        failure.or_else(|| (late > 0).then(|| format!("{about}: {late} rows are missing: the file did not keep up")))
    }
}

/// A line.
#[derive(Serialize)]
struct Line<'a> {
    server: String,
    process: u32,
    name: &'a str,
    demangled: &'a str,
    short: &'a str,
    class: &'static str,
    launches: u64,
    grid: Option<[u32; 3]>,
    block: Option<[u32; 3]>,
    shared_memory: Option<u32>,
    streams: Option<u64>,
    named_by: &'static str,
}

pub(super) fn open(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let Some(path) = context.flags.kernels_out.as_deref() else { return Ok(None) };
    let out: Box<dyn io::Write + Send> = if path == Path::new("-") {
        Box::new(io::stdout())
    } else {
        Box::new(LogFile::open(path, "the kernels", Existing::Dropped, context.reopen)?)
    };
    let about = format!("kernels {}", path.display());
    let late = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&late);
    let count = move |fate, rows| {
        if fate == Fate::QueueFull {
            counted.fetch_add(rows, Relaxed);
        }
    };
    let lines = Lines::start(about.clone(), "rows", out, QUEUE_ROWS, context.pressure, count, |row, line| {
        access_log::write(&line_of(row), line)
    })?;
    Ok(Some(Box::new(Kernels { about, lines, late })))
}

fn line_of(row: &KernelRow) -> Line<'_> {
    let KernelRow { server, process, name, launches, shape, streams } = row;
    Line {
        server: server.instance(),
        process: *process,
        name: &name.name,
        demangled: &name.demangled,
        short: &name.short,
        class: name.class.name(),
        launches: *launches,
        grid: shape.map(|shape| shape.grid),
        block: shape.map(|shape| shape.block),
        shared_memory: shape.map(|shape| shape.shared),
        streams: *streams,
        named_by: name.named_by.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::cuda::{Class, KernelName, KernelShape, NamedBy};

    #[test]
    fn a_row_says_what_was_launched_and_null_is_not_known() {
        let name = KernelName {
            name: "_Z3addPf".to_owned(),
            demangled: "add(float*)".to_owned(),
            short: "add".to_owned(),
            class: Class::Other,
            named_by: NamedBy::Handle,
        };
        let shape = Some(KernelShape { grid: [4, 1, 1], block: [32, 1, 1], shared: 128 });
        let row = KernelRow {
            server: Arc::default(),
            process: 7,
            name: Arc::new(name),
            launches: 3,
            shape,
            streams: Some(1),
        };
        let mut line = Vec::new();
        access_log::write(&line_of(&row), &mut line).expect("serializes");
        let expected = r#"{"server":"unknown_service","process":7,"name":"_Z3addPf","demangled":"add(float*)","short":"add","class":"other","launches":3,"grid":[4,1,1],"block":[32,1,1],"shared_memory":128,"streams":1,"named_by":"handle"}"#;
        assert_eq!(String::from_utf8_lossy(&line), expected);
        line.clear();
        access_log::write(&line_of(&KernelRow { shape: None, streams: None, ..row }), &mut line).expect("serializes");
        assert!(
            String::from_utf8_lossy(&line).contains(r#""grid":null,"block":null,"shared_memory":null,"streams":null"#)
        );
    }
}
