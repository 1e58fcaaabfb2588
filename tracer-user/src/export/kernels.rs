//! `--kernels-out`: one JSON object a line for each process and CUDA kernel, when the process or the run is over. The fields are those of
//! docs/signals.md.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::lines::Lines;
use super::log_file::LogFile;
use super::sink::{Context, Sink};
use super::{Pressure, access_log};
use crate::output::cuda::KernelRow;

/// Rows that wait for the file at most; a server has some hundred.
const QUEUE_ROWS: u64 = 65_536;

#[derive(Debug)]
struct Kernels(Lines<KernelRow>);

impl Sink for Kernels {
    fn kernel(&mut self, row: &KernelRow) {
        self.0.push(&Arc::new(row.clone()), 1);
    }

    fn finish(self: Box<Self>) -> Option<String> {
        self.0.finish()
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
        Box::new(LogFile::open(path, "the kernels", false, context.reopen)?)
    };
    let about = format!("kernels {}", path.display());
    // At the end there is time: nothing is dropped.
    let lines = Lines::start(
        about,
        out,
        QUEUE_ROWS,
        Pressure::Wait,
        |_, _| {},
        |row, line| access_log::write(&line_of(row), line),
    )?;
    Ok(Some(Box::new(Kernels(lines))))
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
