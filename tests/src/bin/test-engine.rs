//! [`inferspan_demo_engine`] for this crate's tests: cargo builds a package's own binaries before its tests, and no others.

fn main() -> anyhow::Result<()> {
    inferspan_demo_engine::server::main()
}
