//! One request, drawn: its waterfall and why it took so long, or how far it has come.

use super::picture::{Picture, What, stage};
use crate::core::view::Stage;
use crate::export::terminal::table::bar;
use crate::export::terminal::units::{duration, fit, wrap};
use crate::export::terminal::{Inked, Style, waterfall};
use crate::output::{SpanId, TraceId};
use crate::store::{Request, Store};
use crate::why::{self, Around};

/// Which request: it may be open when it is chosen, and over at the next look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    Open { server: String, id: Option<String>, since: u64 },
    Over(TraceId, SpanId),
}

/// What there is of it.
#[derive(Debug, Clone)]
pub enum Found {
    /// Places in [`Picture::servers`] and in what is open there.
    Open(usize, usize),
    /// It, and what went on around it.
    Over(Request, Around),
    Gone,
    /// It was open, and what is open is not known just now.
    Unknown,
}

/// What is shown of it.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    pub title: String,
    pub lines: Vec<Vec<Inked>>,
}

impl Chosen {
    pub fn of(picture: &Picture, what: What) -> Option<Self> {
        match what {
            What::Open(server, at) => picture.open(server, at).map(|(server, open)| Self::Open {
                server: server.server.clone(),
                id: open.id.clone(),
                since: open.since,
            }),
            What::Over(at) => {
                let root = picture.over.get(at)?.trace.spans.first()?;
                Some(Self::Over(root.trace_id, root.span_id))
            }
        }
    }

    /// Whether a row of a picture is it.
    pub fn is(&self, picture: &Picture, what: What) -> bool {
        match (self, what) {
            (Self::Open { server, since, .. }, What::Open(at, open)) => {
                picture.open(at, open).is_some_and(|(of, request)| request.since == *since && of.server == *server)
            }
            (Self::Over(trace, span), What::Over(at)) => {
                let root = picture.over.get(at).and_then(|request| request.trace.spans.first());
                root.is_some_and(|root| (root.trace_id, root.span_id) == (*trace, *span))
            }
            _ => false,
        }
    }

    /// What there is of it; one that was open may be over. What is in `store` is cloned, so that it is free again.
    pub fn find(&self, picture: &Picture, store: &Store) -> Found {
        let over = |request: &Request| Found::Over(request.clone(), why::around(store, &request.trace));
        match self {
            Self::Over(trace, span) => {
                let is_it = |request: &&Request| request.trace.spans.first().is_some_and(|root| root.span_id == *span);
                store.of_trace(*trace).find(is_it).map_or(Found::Gone, over)
            }
            Self::Open { server, id, since } => {
                let of_server = picture.servers().iter().enumerate().find(|(_, other)| other.server == *server);
                let open = of_server.and_then(|(at, other)| {
                    let is_it = |request: &crate::store::now::OpenRequest| request.since == *since;
                    other.open.iter().position(is_it).map(|open| (at, open))
                });
                if let Some((server, at)) = open {
                    return Found::Open(server, at);
                }
                let nothing = if picture.now.is_some() { Found::Gone } else { Found::Unknown };
                id.as_deref().and_then(|id| store.find(id).into_iter().next()).map_or(nothing, over)
            }
        }
    }
}

impl Found {
    pub fn show(&self, picture: &Picture, style: Style) -> Shown {
        match self {
            Self::Open(server, at) => still_open(picture, *server, *at, style),
            Self::Over(request, around) => over(request, around, style),
            Self::Gone => nothing(OVER),
            Self::Unknown => nothing("what is open is not known just now"),
        }
    }
}

const OVER: &str = "it is over, and is not kept any more";

fn nothing(why: &str) -> Shown {
    Shown { title: "request".into(), lines: vec![vec![(2, why.to_owned())]] }
}

/// A request that is over.
fn over(request: &Request, around: &Around, style: Style) -> Shown {
    // Why comes first: on a small screen the waterfall fills the rest.
    let why = why::text::paragraph(&request.trace, &why::explain(&request.trace, around));
    let why = wrap(&why, style.width, style);
    let mut lines: Vec<Vec<Inked>> = why.into_iter().map(|line| vec![(0, line)]).collect();
    lines.push(Vec::new());
    lines.extend(waterfall::lines(&request.trace, style));
    let id = request.record.as_deref().and_then(|record| record.request_id.clone()).unwrap_or_default();
    Shown { title: format!("request {}", fit(&id, 60, style)), lines }
}

/// A request that is open.
fn still_open(picture: &Picture, server: usize, at: usize, style: Style) -> Shown {
    let Some((server, open)) = picture.open(server, at) else { return nothing(OVER) };
    let seconds = |from: Option<u64>, to: Option<u64>| {
        from.zip(to).map_or_else(|| "-".to_owned(), |(from, to)| duration(to.saturating_sub(from) as f64 / 1e9))
    };
    let now = Some(server.now);
    let until = |at: Option<u64>| at.or(now);
    let mut facts = vec![
        ("stage", stage(open.stage).to_owned()),
        ("open for", seconds(Some(open.since), now)),
        ("request", open.route.clone().unwrap_or_else(|| "(HTTP not seen)".into())),
        ("model", open.model.clone().unwrap_or_else(|| "-".into())),
        ("server", server.server.clone()),
        ("engine", open.engine.map_or_else(|| "-".into(), |engine| engine.to_string())),
        ("in the front end", seconds(Some(open.since), until(open.sent))),
    ];
    match open.scheduled {
        Some(scheduled) => {
            facts.push(("queued", seconds(open.sent, Some(scheduled))));
            facts.push(("prefill", seconds(Some(scheduled), until(open.first_token))));
        }
        None if open.stage == Stage::Waiting => facts.push(("queued or in prefill", seconds(open.sent, now))),
        None => {}
    }
    if open.first_token.is_some() {
        facts.push(("decode", seconds(open.first_token, now)));
    }
    facts.push(("tokens in", open.prompt_tokens.map_or_else(|| "-".into(), |count| count.to_string())));
    facts.push(("tokens out", open.output_tokens.to_string()));
    facts.push(("preempted", open.preemptions.to_string()));
    if open.lost {
        facts.push(("lost", "records that may have been its were lost".into()));
    }
    let mut lines: Vec<Vec<Inked>> = facts
        .into_iter()
        .map(|(name, fact)| {
            let room = style.width.saturating_sub(23);
            vec![(2, format!("{name:>22} ")), (0, fit(&fact, room, style))]
        })
        .collect();
    lines.push(Vec::new());
    lines.push(bar(super::picture::phases_of(open, server.now), style.width, style));
    lines.push(vec![(2, fit("its waterfall, and why, stand here when it is over", style.width, style))]);
    Shown { title: format!("request {}", fit(open.id.as_deref().unwrap_or("-"), 60, style)), lines }
}
