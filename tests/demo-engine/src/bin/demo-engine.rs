//! See [`inferspan_demo_engine`].

fn main() -> anyhow::Result<()> {
    inferspan_demo_engine::server::main()
}
