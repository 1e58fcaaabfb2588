//! The output flags that `attach` and `replay` share.

use std::path::PathBuf;

/// Where traces, metrics and the access log go. Without any, a line a request goes to the terminal.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OutputArgs {
    /// Send traces to this OTLP endpoint (gRPC by default; `OTEL_EXPORTER_OTLP_*` variables apply)
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Write traces to FILE as OTLP/JSON, one export request a line
    #[arg(long, value_name = "FILE")]
    pub traces_out: Option<PathBuf>,
    /// Serve Prometheus metrics on ADDR (host:port or port; loopback unless a host is given)
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// Write the metrics to FILE as OpenMetrics text when the run ends
    #[arg(long, value_name = "FILE")]
    pub metrics_out: Option<PathBuf>,
    /// Write one JSON line a finished request to FILE (`-` is stdout)
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
}
