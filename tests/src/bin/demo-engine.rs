//! See [`inferspan_tests::demo_engine`].

fn main() -> anyhow::Result<()> {
    inferspan_tests::demo_engine::server::main()
}
