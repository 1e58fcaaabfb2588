//! Builds the fake CUDA libraries, or finds them built, and prints their folder: for the demo.

fn main() -> anyhow::Result<()> {
    println!("{}", inferspan_tests::cuda::Fixture::build()?.folder().display());
    Ok(())
}
