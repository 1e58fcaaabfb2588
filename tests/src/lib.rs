//! Fixtures for the live, real-server and back-end tests, and for the demo.

pub mod demo_engine;
pub mod traffic;
