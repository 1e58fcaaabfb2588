//! `inferspan top`: look at a running server while it serves.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::target::{TargetArgs, find};
use super::{print, print_json, say};
use crate::attach::Level;
use crate::attach::loader::Options;
use crate::discover::ServerProcesses;
use crate::exit::{Code, Failure};
use crate::export::Sinks;
use crate::export::flags::MAX_SPANS;
use crate::export::terminal::Style;
use crate::run::begun::{Begun, Plan};
use crate::run::live::StoppedBy;
use crate::run::stop::Stop;
use crate::sanitise::sanitise;
use crate::telemetry::Telemetry;
use crate::top::picture::Sort;
use crate::top::view::View;
use crate::top::{Watched, document, screen};

/// Look at a running server: its requests as they go through it, its engines' steps, what tracing costs.
///
/// Attaches as `attach` does, writes nothing, and detaches when it is left (q, Ctrl-C). The screen has a page of help (?). With --once it
/// needs no terminal: it looks for a moment, prints one picture and ends.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub target: TargetArgs,
    /// How much is observed
    #[arg(long, value_enum, default_value_t = Level::Steps)]
    pub level: Level,
    /// What requests are sorted by, at first
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Print one picture and end
    #[arg(long)]
    pub once: bool,
    /// How long to look before it, seconds
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 1.0, requires = "once")]
    pub seconds: f64,
    /// As JSON (schema inferspan.top/1)
    #[arg(long, requires = "once")]
    pub json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let is_long = Duration::try_from_secs_f64(args.seconds).ok().filter(|time| !time.is_zero());
    let Some(look) = is_long else {
        let what = format!("--for {} is no time to look", args.seconds);
        return Err(Failure::new(Code::Usage, what, "give seconds above 0, such as 1 or 2.5").into());
    };
    if !args.once && !screen::is_possible() {
        let what = "the live view needs a terminal, and stdin or stdout is none";
        let fix = "run it in a terminal, or ask for one picture: --once, or --once --json for programs";
        return Err(Failure::new(Code::Usage, what, fix).into());
    }
    let stop = Stop::on_signals(false)?;
    let servers = find(&args.target)?;
    let telemetry = Arc::new(Telemetry::default());
    let mut sinks = Sinks::none(Arc::clone(&telemetry));
    let watched = Watched::of(&mut sinks, &telemetry)?;
    let title = title(&servers);
    let view = if args.once {
        None
    } else {
        let attaching = format!("attaching to {title} ...");
        Some(View::open(watched.clone(), args.sort, attaching, stop.clone())?)
    };
    let options = Options { level: args.level, ..Options::default() };
    let duration = args.once.then_some(look);
    let plan = Plan { options, max_spans: MAX_SPANS, recording: None, gpus: false, duration };
    let began = Begun::begin(servers, &plan, sinks, telemetry, stop);
    let followed =
        began.map(|begun| begun.map(|begun| follow(begun, &watched, args, view.as_ref().map(|view| (view, title)))));
    // Before anything is said of how it went.
    let closed = view.map_or(Ok(()), View::close);
    let Some(end) = followed? else { return Ok(Code::Interrupted) };
    closed?;
    if end? == StoppedBy::Target {
        say("the server has ended");
    }
    Ok(Code::Ok)
}

/// Traces until something ends it: what that was.
fn follow(mut begun: Begun, watched: &Watched, args: &Args, view: Option<(&View, String)>) -> io::Result<StoppedBy> {
    begun.probe_libraries().iter().for_each(|what| warn(what));
    if let Err(error) = begun.give_up_privileges(std::iter::empty()) {
        warn(&error.to_string());
    }
    if let Some((view, title)) = view {
        view.set_title(title);
    }
    let mut reader = watched.reader();
    watched.kept.ask_for_now();
    let end = loop {
        if let Some(end) = begun.turn(&mut |what| warn(what)) {
            break end;
        }
        if args.once {
            // So that the picture is of the end, however long this looks.
            watched.kept.ask_for_now();
        }
    };
    let shown = if args.once {
        let picture = watched.picture(&mut reader);
        if args.json {
            print_json(&document::json(&picture, args.sort))
        } else {
            print(&document::text(&picture, args.sort, Style::of(&io::stdout())))
        }
    } else {
        Ok(())
    };
    let (_, attachment) = begun.finish();
    attachment.leave();
    shown.map(|()| end)
}

/// Who is traced.
fn title(servers: &[ServerProcesses]) -> String {
    let of = |found: &ServerProcesses| format!("{} {}", found.server.instance(), found.server.model);
    let names: Vec<String> = servers.iter().map(|found| sanitise(of(found).trim(), 60).into_owned()).collect();
    names.join(", ")
}

fn warn(what: &str) {
    say(&format!("warning: {what}"));
}
