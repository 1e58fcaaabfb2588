//! What a timeline is made of, whatever its file looks like.
//!
//! Invariants, kept by who draws: a track is told of before what lies on it, and after its parent; slices of one track lie inside or
//! beside each other. Times are unix ns.

use crate::output::Value;

/// A track, by a hash of what it is: the same in every run on the same input.
pub(super) type TrackId = u64;

/// One thing that is drawn.
#[derive(Debug)]
pub(super) enum Mark<'a> {
    Track(Track<'a>),
    Slice(Slice<'a>),
    /// A point in time; it may lie on a track with slices.
    Instant {
        track: TrackId,
        at: u64,
        name: &'a str,
        categories: &'a [&'a str],
    },
    Count {
        track: TrackId,
        at: u64,
        value: Count,
    },
    /// From one slice to another; each end lies in its slice, which is drawn already. `from.1` ≤ `to.1`.
    Arrow {
        id: u64,
        from: (TrackId, u64),
        to: (TrackId, u64),
    },
}

#[derive(Debug)]
pub(super) struct Track<'a> {
    pub id: TrackId,
    pub parent: Option<TrackId>,
    pub name: &'a str,
    pub kind: TrackKind<'a>,
    /// Among its siblings, smallest first.
    pub rank: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrackKind<'a> {
    /// A group for a process; `None`: one whose number is not known.
    Process(Option<u32>),
    Thread {
        process: u32,
        thread: u32,
    },
    Plain,
    /// `unit`: `bytes`, or a word.
    Counter {
        unit: &'a str,
    },
}

#[derive(Debug)]
pub(super) struct Slice<'a> {
    pub track: TrackId,
    pub start: u64,
    /// ≥ `start`; equal where no end is known.
    pub end: u64,
    pub name: &'a str,
    pub categories: &'a [&'a str],
    /// Arrows that may start here, as slices that come later say; at the slice's start.
    pub arrows_out: &'a [u64],
    /// The arrow that ends here.
    pub arrow_in: Option<u64>,
    pub notes: &'a [(&'a str, Note<'a>)],
}

/// A detail of a slice.
#[derive(Debug, Clone, Copy)]
pub(super) enum Note<'a> {
    Value(&'a Value),
    Number(u64),
    Text(&'a str),
    /// A handle or id, shown as hexadecimal.
    Hex(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Count {
    Whole(u64),
    Real(f64),
}

/// A kind of file.
pub(super) trait Format: Send {
    /// Appends what stands in front; called once. `at`: the first time that is known, unix ns.
    fn begin(&mut self, at: u64, out: &mut Vec<u8>);

    /// Appends `mark` to `out`.
    fn mark(&mut self, mark: &Mark<'_>, out: &mut Vec<u8>);

    /// Appends what ends the file; a file without it can be read too.
    fn end(&mut self, out: &mut Vec<u8>);
}

/// Where marks go.
pub(super) struct Pen<'a> {
    pub format: &'a mut dyn Format,
    pub out: &'a mut Vec<u8>,
}

impl Pen<'_> {
    pub(super) fn mark(&mut self, mark: &Mark<'_>) {
        self.format.mark(mark, self.out);
    }
}
