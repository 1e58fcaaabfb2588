//! The thread that draws and listens to keys.
//!
//! Enters: what is watched, a terminal. Leaves: a screen, and the wish to end. Invariant: it ends when it is told to, and whoever waits for
//! the run's end hears of its own, even by a panic.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event};

use super::Watched;
use super::detail::{Chosen, Found, Shown};
use super::draw::{Scene, body_rows, draw};
use super::keys::{Action, Looking, Page};
use super::picture::{Picture, Row, Sort};
use super::screen::{self, Screen};
use crate::console::{self, Diverted, Last};
use crate::export::meter::Reader;
use crate::export::terminal::Style;
use crate::run::stop::Stop;

/// How often a new picture is drawn.
const EVERY: Duration = Duration::from_millis(500);
/// How soon an end, or a signal, is noticed.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a request that is over is judged anew: those that were beside it may be over by now, too.
const JUDGE_EVERY: Duration = Duration::from_secs(5);
/// How long a warning stands there.
const WARN_FOR: Duration = Duration::from_secs(30);
/// How long the end waits for a terminal that takes no more.
const END: Duration = Duration::from_secs(2);

/// A view that is open.
#[derive(Debug)]
pub struct View {
    thread: JoinHandle<io::Result<()>>,
    ended: Receiver<()>,
    is_over: Arc<AtomicBool>,
    title: Arc<Mutex<String>>,
}

impl View {
    /// Takes the terminal. A key that quits asks `stop` for the end.
    pub fn open(watched: Watched, sort: Sort, title: String, stop: Stop) -> io::Result<Self> {
        let screen = Screen::open()?;
        let diverted = console::divert();
        let is_over = Arc::new(AtomicBool::new(false));
        let title = Arc::new(Mutex::new(title));
        let (end, ended) = mpsc::channel();
        let looking = Looking { sort, ..Looking::default() };
        let drawer = Drawer {
            reader: watched.reader(),
            watched,
            looking,
            picture: Picture::default(),
            rows: Vec::new(),
            chosen: None,
            shown: Shown::default(),
            judged: None,
            warnings: Warnings::default(),
            is_over: Arc::clone(&is_over),
            title: Arc::clone(&title),
        };
        let thread = std::thread::Builder::new().name("inferspan-view".into()).spawn(move || {
            // In this order, so that the terminal is back before the end is asked for.
            let _end = Ends(stop, end);
            let diverted = diverted;
            let screen = screen;
            drawer.run(screen, &diverted)
        })?;
        Ok(Self { thread, ended, is_over, title })
    }

    /// Who is traced, or what is being done.
    pub fn set_title(&self, title: String) {
        *self.title.lock().unwrap_or_else(PoisonError::into_inner) = title;
    }

    /// Gives the terminal back.
    pub fn close(self) -> io::Result<()> {
        self.is_over.store(true, SeqCst);
        if self.ended.recv_timeout(END).is_err() && !self.thread.is_finished() {
            // It waits for the terminal, and so would whoever waits for it.
            screen::give_back();
            return Ok(());
        }
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the view failed")))
    }
}

/// Asks for the end of the run, however the thread ends.
#[derive(Debug)]
struct Ends(Stop, mpsc::Sender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.ask();
        // Nobody waits any more.
        let _ = self.1.send(());
    }
}

/// What was said.
#[derive(Debug, Default)]
struct Warnings {
    all: Last,
    newest: Option<(String, Instant)>,
}

/// A request that is over and shown, and since when.
struct Judged {
    chosen: Chosen,
    style: Style,
    at: Instant,
}

/// The thread's own.
struct Drawer {
    watched: Watched,
    reader: Reader,
    looking: Looking,
    picture: Picture,
    rows: Vec<Row>,
    chosen: Option<Chosen>,
    shown: Shown,
    /// What is shown, where that is a request that is over.
    judged: Option<Judged>,
    warnings: Warnings,
    is_over: Arc<AtomicBool>,
    title: Arc<Mutex<String>>,
}

impl Drawer {
    fn run(mut self, mut screen: Screen, diverted: &Diverted) -> io::Result<()> {
        let mut next = Instant::now();
        let mut is_dirty = true;
        let ended = loop {
            if self.is_over.load(SeqCst) {
                break Ok(());
            }
            let now = Instant::now();
            if now >= next {
                next = now + EVERY;
                is_dirty = true;
                if !self.looking.is_frozen {
                    self.refresh();
                }
            }
            is_dirty |= self.warnings.take(diverted);
            let size = screen.terminal.size()?;
            if is_dirty {
                is_dirty = false;
                self.sort();
                self.draw(&mut screen)?;
            }
            if event::poll(PATIENCE.min(next.saturating_duration_since(now)))? {
                is_dirty = true;
                if let Event::Key(key) = event::read()? {
                    let (rows, page) = (self.count(), self.looking.page);
                    let action = self.looking.key(key, rows, body_rows(size.height));
                    // Of the rows as they were when the key was pressed.
                    if page == Page::Requests {
                        self.choose();
                    }
                    match action {
                        Action::Nothing | Action::Open => {}
                        Action::Quit => break Ok(()),
                        Action::Suspend => screen.suspend()?,
                    }
                }
            }
            if let Err(error) = screen.obey() {
                break Err(error);
            }
        };
        drop(screen);
        // They stay readable where the view was.
        self.warnings.take(diverted);
        console::keep(&self.warnings.all);
        ended
    }

    fn refresh(&mut self) {
        self.picture = self.watched.picture(&mut self.reader);
    }

    /// Lines of the page that is shown, for keys.
    fn count(&self) -> usize {
        match self.looking.page {
            Page::Requests => self.rows.len(),
            Page::Request => self.shown.lines.len(),
            Page::Steps => self.picture.steps.len() * 8,
            Page::Help => 1,
        }
    }

    /// Sorts the rows anew. The chosen one stays chosen; the first row is whichever comes first.
    fn sort(&mut self) {
        if self.looking.page != Page::Requests {
            return;
        }
        self.rows = self.picture.rows(self.looking.sort, &self.looking.filter);
        if let Some(chosen) = self.chosen.as_ref().filter(|_| self.looking.row > 0) {
            let place = self.rows.iter().position(|row| chosen.is(&self.picture, row.what));
            self.looking.row = place.unwrap_or(self.looking.row);
        }
        self.looking.row = self.looking.row.min(self.rows.len().saturating_sub(1));
    }

    fn choose(&mut self) {
        let row = self.rows.get(self.looking.row);
        self.chosen = row.and_then(|row| Chosen::of(&self.picture, row.what));
    }

    fn draw(&mut self, screen: &mut Screen) -> io::Result<()> {
        let style = Style { width: screen.terminal.size()?.width.into(), ..Style::of(&io::stdout()) };
        if let Some(chosen) = self.chosen.as_ref().filter(|_| self.looking.page == Page::Request) {
            let is_fresh = |judged: &Judged| {
                (&judged.chosen, judged.style) == (chosen, style) && judged.at.elapsed() < JUDGE_EVERY
            };
            if !self.judged.as_ref().is_some_and(is_fresh) {
                // The store is free again behind this: judging and drawing take their time.
                let found = chosen.find(&self.picture, &self.watched.kept.store());
                let is_over = matches!(found, Found::Over(..));
                self.shown = found.show(&self.picture, style);
                self.judged = is_over.then(|| Judged { chosen: chosen.clone(), style, at: Instant::now() });
            }
        }
        let title = self.title.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let scene = Scene {
            picture: &self.picture,
            looking: &self.looking,
            rows: &self.rows,
            shown: &self.shown,
            title: &title,
            warning: self.warnings.shown(),
            style,
        };
        screen.terminal.draw(|frame| draw(frame, &scene)).map(|_| ())
    }
}

impl Warnings {
    /// Whether there is something new.
    fn take(&mut self, diverted: &Diverted) -> bool {
        let said = diverted.take();
        let has_news = said.count() > 0;
        if let Some(last) = said.lines.back() {
            self.newest = Some((last.replace('\n', " "), Instant::now()));
        }
        self.all.extend(&said);
        has_news
    }

    fn shown(&self) -> Option<(&str, u64)> {
        let (text, _) = self.newest.as_ref().filter(|(_, at)| at.elapsed() < WARN_FOR)?;
        Some((text, self.all.count()))
    }
}
