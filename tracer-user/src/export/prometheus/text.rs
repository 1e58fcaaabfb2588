//! OpenMetrics 1.0.0 text to the older Prometheus text format 0.0.4.
//!
//! What changes: a counter's family is named with its `_total`, an info becomes a gauge named with its `_info`; `# UNIT`, `# EOF`
//! and exemplars do not exist. Samples stay as they are, byte for byte.

use std::fmt::Write as _;

/// Content type of OpenMetrics text.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the older text.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether an `Accept` header asks for OpenMetrics: it is named, and not with a lower quality than plain text.
pub fn wants_openmetrics(accept: &str) -> bool {
    let quality = |kind: &str| {
        accept
            .split(',')
            .filter(|range| range.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(kind))
            // A version we do not speak does not count.
            .filter(|range| {
                kind != "application/openmetrics-text"
                    || parameter(range, "version").is_none_or(|v| v.starts_with("1."))
            })
            .map(|range| parameter(range, "q").and_then(|q| q.parse::<f64>().ok()).unwrap_or(1.0))
            .fold(0.0, f64::max)
    };
    let openmetrics = quality("application/openmetrics-text");
    openmetrics > 0.0 && openmetrics >= quality("text/plain")
}

fn parameter<'a>(range: &'a str, name: &str) -> Option<&'a str> {
    range.split(';').skip(1).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// Translates a whole exposition.
pub fn plain(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    // HELP comes before TYPE, and the name in it depends on the type.
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { continue };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(without_exemplar(line));
            out.push('\n');
        }
    }
    out
}

/// A sample's line up to its exemplar. A label value may hold ` # ` as well, so labels are stepped over first.
fn without_exemplar(line: &str) -> &str {
    let bytes = line.as_bytes();
    let mut at = 0;
    let mut in_quotes = false;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_quotes => at += 1,
            b'"' => in_quotes = !in_quotes,
            b'#' if !in_quotes => return line[..at].trim_end(),
            _ => {}
        }
        at += 1;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_renamed_and_exemplars_dropped() {
        let text = "# HELP a Things.\n# TYPE a counter\na_total{m=\"x # {y\\\"\"} 1 # {t=\"1\"} 1.0\n\
                    # HELP b_seconds Time.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
                    b_seconds_bucket{le=\"+Inf\"} 1 # {trace_id=\"ab\"} 0.3\n\
                    # HELP c Build.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{m=\"x # {y\\\"\"} 1\n\
                        # HELP b_seconds Time.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"+Inf\"} 1\n\
                        # HELP c_info Build.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(plain(text), expected);
    }

    #[test]
    fn accept_decides_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert!(wants_openmetrics(prometheus));
        assert!(wants_openmetrics("application/openmetrics-text"));
        assert!(!wants_openmetrics("*/*"));
        assert!(!wants_openmetrics(""));
        assert!(!wants_openmetrics("text/plain"));
        assert!(!wants_openmetrics("application/openmetrics-text;q=0.1,text/plain"));
        assert!(!wants_openmetrics("application/openmetrics-text; version=2.0.0"));
        assert!(!wants_openmetrics("application/openmetrics-text;q=0"));
    }
}
