//! What keys do.
//!
//! Enters: keys, and how many rows there are. Leaves: what is looked at, and how. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::picture::Sort;

/// Longest filter, characters.
const MAX_FILTER: usize = 60;

/// What the screen shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Page {
    #[default]
    Requests,
    /// The request that was chosen.
    Request,
    Steps,
    Help,
}

/// What is to be done besides drawing again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Nothing,
    /// Look at the chosen row.
    Open,
    Quit,
    /// Stop this process, as Ctrl-Z does.
    Suspend,
}

/// How a person looks.
#[derive(Debug, Clone, Default)]
pub struct Looking {
    pub page: Page,
    /// Where Esc leads from [`Page::Help`].
    pub before: Page,
    pub sort: Sort,
    pub filter: String,
    /// The filter is being typed.
    pub is_typing: bool,
    pub is_frozen: bool,
    /// The row that is chosen, and lines that are scrolled past on other pages.
    pub row: usize,
    pub scrolled: usize,
}

impl Looking {
    /// `rows`: how many there are; `page`: rows that the screen has.
    pub fn key(&mut self, key: KeyEvent, rows: usize, page: usize) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                KeyCode::Char('z') => Action::Suspend,
                _ => Action::Nothing,
            };
        }
        if self.is_typing {
            self.type_filter(key.code);
            return Action::Nothing;
        }
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('?') | KeyCode::F(1) if self.page != Page::Help => self.go(Page::Help),
            KeyCode::Char('s') if self.page != Page::Steps => self.go(Page::Steps),
            KeyCode::Char('s' | '?') | KeyCode::Esc | KeyCode::Backspace => self.back(),
            KeyCode::Char(' ') => self.is_frozen = !self.is_frozen,
            KeyCode::Enter if self.page == Page::Requests && rows > 0 => {
                self.go(Page::Request);
                return Action::Open;
            }
            KeyCode::Char('/') if self.page == Page::Requests => self.is_typing = true,
            code => {
                if !(self.page == Page::Requests && self.sorts(code)) {
                    self.moves(code, rows, page);
                }
            }
        }
        Action::Nothing
    }

    fn go(&mut self, page: Page) {
        self.before = if self.page == Page::Help { self.before } else { self.page };
        self.page = page;
        self.scrolled = 0;
    }

    fn back(&mut self) {
        match self.page {
            // At home it takes the filter away.
            Page::Requests => self.filter.clear(),
            Page::Help => self.page = self.before,
            Page::Request | Page::Steps => self.page = Page::Requests,
        }
        self.scrolled = 0;
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.chars().count() < MAX_FILTER => self.filter.push(c),
            _ => {}
        }
        self.row = 0;
    }

    fn sorts(&mut self, code: KeyCode) -> bool {
        self.sort = match code {
            KeyCode::Char('a') => Sort::Age,
            KeyCode::Char('t') => Sort::Ttft,
            KeyCode::Char('e') => Sort::E2e,
            KeyCode::Char('n') => Sort::Tokens,
            KeyCode::Char('w') => Sort::Queue,
            _ => return false,
        };
        self.row = 0;
        true
    }

    fn moves(&mut self, code: KeyCode, rows: usize, page: usize) {
        let at = if self.page == Page::Requests { &mut self.row } else { &mut self.scrolled };
        let last = rows.saturating_sub(1);
        *at = match code {
            KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => at.saturating_add(1).min(last),
            KeyCode::PageUp => at.saturating_sub(page.max(1)),
            KeyCode::PageDown => at.saturating_add(page.max(1)).min(last),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => last,
            _ => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(looking: &mut Looking, keys: &str) -> Action {
        let mut action = Action::Nothing;
        for c in keys.chars() {
            let code = match c {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                c => KeyCode::Char(c),
            };
            action = looking.key(KeyEvent::from(code), 10, 5);
        }
        action
    }

    #[test]
    fn keys_sort_move_and_drill_in_and_back() {
        let mut looking = Looking::default();
        press(&mut looking, "tjjj");
        assert_eq!((looking.sort, looking.row), (Sort::Ttft, 3));
        assert_eq!(press(&mut looking, "\n"), Action::Open);
        assert_eq!(looking.page, Page::Request);
        press(&mut looking, "jj");
        assert_eq!((looking.row, looking.scrolled), (3, 2), "another page scrolls by itself");
        press(&mut looking, "?\x1b");
        assert_eq!(looking.page, Page::Request, "help leads back to where it was asked for");
        press(&mut looking, "\x1b");
        assert_eq!((looking.page, looking.row), (Page::Requests, 3));
        press(&mut looking, "s");
        assert_eq!(looking.page, Page::Steps);
        press(&mut looking, "s ");
        assert!(looking.page == Page::Requests && looking.is_frozen);
        assert_eq!(press(&mut looking, "q"), Action::Quit);
    }

    #[test]
    fn while_a_filter_is_typed_keys_are_its_letters() {
        let mut looking = Looking::default();
        assert_eq!(press(&mut looking, "/quit"), Action::Nothing);
        assert_eq!((looking.filter.as_str(), looking.is_typing), ("quit", true));
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(looking.key(control, 0, 0), Action::Quit);
        press(&mut looking, "\n");
        assert!(!looking.is_typing);
        press(&mut looking, "\x1b");
        assert_eq!(looking.filter, "");
    }

    #[test]
    fn one_cannot_move_past_the_ends() {
        let mut looking = Looking::default();
        press(&mut looking, "kG");
        assert_eq!(looking.row, 9);
        press(&mut looking, "jg");
        assert_eq!(looking.row, 0);
        looking.key(KeyEvent::from(KeyCode::PageDown), 0, 5);
        assert_eq!(looking.row, 0);
    }
}
