//! Small drawings for a page: a distribution, bars of shares.
//!
//! Enters: numbers. Leaves: SVG and boxes, of numbers and fixed words alone.

use std::fmt::Write as _;

use super::words::seconds;

/// Of a distribution, px.
const WIDTH: f64 = 160.0;
const HEIGHT: f64 = 30.0;

/// A distribution: a bar a bucket, with a title each.
pub fn distribution(bars: &[(f64, u64)]) -> String {
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1) as f64;
    let width = WIDTH / bars.len().max(1) as f64;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"distribution\">");
    for (at, (to, count)) in bars.iter().enumerate() {
        if *count == 0 {
            continue;
        }
        // What is there is seen.
        let height = (*count as f64 / most * (HEIGHT - 2.0)).max(1.5);
        let _ = write!(
            out,
            "<rect class=\"hist\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{count} up to {}</title></rect>",
            at as f64 * width + 0.5,
            HEIGHT - 1.0 - height,
            width - 1.0,
            seconds(*to)
        );
    }
    let _ = write!(out, "<line class=\"axis\" x1=\"0\" x2=\"{WIDTH}\" y1=\"29.5\" y2=\"29.5\"/></svg>");
    out
}

/// Shares of a whole, side by side; each in the colour of its name, which is a fixed word.
pub fn stack(shares: &[(&'static str, f64)]) -> String {
    let mut out = String::from("<div class=\"stack\" aria-hidden=\"true\">");
    for (name, share) in shares.iter().filter(|(_, share)| *share > 0.0) {
        let _ = write!(out, "<i style=\"width:{:.2}%;background:var(--{name})\"></i>", share.min(1.0) * 100.0);
    }
    out.push_str("</div>");
    out
}

/// A bar within a row: from where to where of it, 0 to 1.
pub fn bar(color: &'static str, from: f64, share: f64) -> String {
    let from = from.clamp(0.0, 1.0);
    let share = share.clamp(0.0, 1.0 - from);
    format!(
        "<div><i style=\"left:{:.2}%;width:{:.2}%;background:var(--{color})\"></i></div>",
        from * 100.0,
        share * 100.0
    )
}
