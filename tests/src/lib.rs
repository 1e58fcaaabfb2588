//! Fixtures shared by the live, real-server and back-end tests.

pub mod backend;
pub mod jaeger;
pub mod live;
pub mod outputs;
pub mod prometheus;
