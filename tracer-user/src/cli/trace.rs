//! What `attach` and `record` share: the flags, and what is said of a trace.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::say;
use super::target::{TargetArgs, find};
use crate::ask::serve::Server;
use crate::ask::socket;
use crate::attach::Level;
use crate::attach::loader::Options;
use crate::discover;
use crate::exit::Code;
use crate::export::flags::OutputArgs;
use crate::export::{Pressure, Sinks};
use crate::run::begun::{Begun, Plan, ToRecord};
use crate::run::length;
use crate::run::stop::Stop;
use crate::run::telling;
use crate::telemetry::Telemetry;
use crate::ui::{Shown, Ui};

/// The flags of every verb that attaches.
#[derive(Debug, Clone, clap::Args)]
pub struct TraceArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// How much is observed
    #[arg(long, value_enum, default_value_t = Level::Steps)]
    pub level: Level,
    /// Trace what any process, no inference server, does with CUDA (with -p): no requests, everything else
    #[arg(long, conflicts_with_all = ["all", "name"])]
    pub cuda_only: bool,
    /// Stop after this long: 90s, 10m, 2h, or a number of seconds
    #[arg(short, long, value_name = "TIME", value_parser = length::parse)]
    pub duration: Option<Duration>,
    /// Print the BPF programs' log to stderr (needs an object built with it, see --bpf-object)
    #[arg(long)]
    pub debug_bpf: bool,
    /// Load this BPF object instead of the built-in one
    #[arg(long, value_name = "FILE", env = "TRACER_EBPF_OBJECT")]
    pub bpf_object: Option<PathBuf>,
    /// Attach each uprobe by a perf event of its own, as on Linux before 6.10
    #[arg(long, hide = true)]
    pub uprobe_events: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Traces until something ends it.
pub(super) fn trace(args: &TraceArgs, ui: Option<&str>, recording: Option<ToRecord>) -> anyhow::Result<Code> {
    let stop = Stop::on_signals(args.output.logs().next().is_some())?;
    let servers = match args.target.pid {
        Some(pid) if args.cuda_only => vec![discover::process_tree(pid)?],
        _ => find(&args.target)?,
    };
    let plan = plan(args, recording);
    let telemetry = Arc::new(Telemetry::default());
    let mut sinks = Sinks::open(&args.output, Arc::clone(&telemetry), Pressure::Drop)?;
    let kept = sinks.keep(Pressure::Drop)?;
    let asked = Server::start(&socket::folder(), kept.clone());
    let ui = ui
        .map(|address| Ui::start(address, Shown::live(kept, Arc::clone(&telemetry), args.output.max_spans)))
        .transpose()?;
    let Some(mut begun) = Begun::begin(servers, &plan, sinks, Arc::clone(&telemetry), stop)? else {
        return Ok(Code::Interrupted);
    };
    introduce(&mut begun, &plan, &args.output);
    if let Some(ui) = &ui {
        say(&ui.told());
    }
    if let Err(why) = &asked {
        warn(&format!("`inferspan why` and `inferspan trace` cannot ask this run: {why}"));
    }
    let end = loop {
        if let Some(end) = begun.turn(&mut warn) {
            break end;
        }
    };
    let (ended, attachment) = begun.finish();
    let (lines, is_whole) = telling::conclusion(end, &ended, &telemetry);
    for line in lines {
        say(&line);
    }
    attachment.leave();
    Ok(if is_whole { Code::Ok } else { Code::Finding })
}

fn plan(args: &TraceArgs, recording: Option<ToRecord>) -> Plan {
    let options = Options {
        object: args.bpf_object.clone(),
        debug_log: args.debug_bpf,
        uprobe_events: args.uprobe_events,
        level: args.level,
        launch_sample: args.output.launch_sample(),
        ..Options::default()
    };
    let gpus = recording.is_some() || args.output.has_metrics();
    Plan { options, max_spans: args.output.max_spans, recording, gpus, duration: args.duration }
}

/// Probes the libraries, and says who is traced, and how.
fn introduce(begun: &mut Begun, plan: &Plan, output: &OutputArgs) {
    for line in telling::introduction(begun) {
        say(&line);
    }
    if let Some(why) = begun.session().not_following() {
        warn(&format!("processes that the server starts from now on are not traced: {why}"));
    }
    begun.probe_libraries().iter().for_each(|what| warn(what));
    if plan.recording.as_ref().is_some_and(|recording| recording.raw) {
        warn("the recording keeps what goes over the server's sockets: prompts, outputs and headers, keys among them");
    } else {
        say("prompts and outputs are neither kept nor exported; nothing is written to the server");
    }
    say(&telling::privileges(begun.give_up_privileges(output.opened_later())));
    say(&telling::attached(begun));
}

fn warn(what: &str) {
    say(&format!("warning: {what}"));
}
