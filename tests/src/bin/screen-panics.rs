//! Takes the terminal as `inferspan top` does, and panics: in a thread of its own, or, with `main`, in the first one.
//!
//! With `drop` it gives the terminal back as at a usual end; with `wait` it stays until it is ended.

use inferspan::top::screen::Screen;

fn main() -> anyhow::Result<()> {
    let how = std::env::args().nth(1).unwrap_or_default();
    let mut screen = Screen::open()?;
    screen.terminal.draw(|frame| frame.render_widget("drawn over all", frame.area()))?;
    match how.as_str() {
        "drop" => drop(screen),
        "main" => panic!("the first thread fails"),
        _ => {
            let thread = std::thread::spawn(move || {
                let _held = screen;
                panic!("another thread fails");
            });
            anyhow::ensure!(thread.join().is_err(), "it did not panic");
        }
    }
    Ok(())
}
