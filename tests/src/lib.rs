//! Fixtures for the live, real-server and back-end tests, and for the demo.

pub mod attached;
pub mod blame;
pub mod cuda;
pub mod demo_engine;
pub mod judge;
pub mod live;
pub mod madeup;
pub mod outputs;
pub mod pipeline;
pub mod signals;
pub mod story;
pub mod timed;
pub mod tmux;
pub mod traffic;
