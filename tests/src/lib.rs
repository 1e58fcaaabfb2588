//! Fixtures shared by the live, real-server and back-end tests.

pub mod live;
