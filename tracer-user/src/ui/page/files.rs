//! The table of files.

use super::File;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! files {
    ($($name:literal $at:literal $content_type:ident),+ $(,)?) => {
        [$(File { name: $name, content_type: $content_type, bytes: include_bytes!($at) }),+]
    };
}

pub(super) static FILES: [File; 18] = files![
    "index.html" "index.html" HTML,
    "app.css" "app.css" CSS,
    "request.css" "request.css" CSS,
    "icon.svg" "icon.svg" SVG,
    "theme.js" "theme.js" SCRIPT,
    "main.js" "main.js" SCRIPT,
    "api.js" "api.js" SCRIPT,
    "dom.js" "dom.js" SCRIPT,
    "keys.js" "keys.js" SCRIPT,
    "load.js" "load.js" SCRIPT,
    "phases.js" "phases.js" SCRIPT,
    "request.js" "request.js" SCRIPT,
    "requests.js" "requests.js" SCRIPT,
    "steps.js" "steps.js" SCRIPT,
    "waterfall.js" "waterfall.js" SCRIPT,
    "uPlot.iife.min.js" "vendor/uPlot.iife.min.js" SCRIPT,
    "uPlot.min.css" "vendor/uPlot.min.css" CSS,
    "uPlot.LICENSE.txt" "vendor/uPlot.LICENSE.txt" TEXT,
];
