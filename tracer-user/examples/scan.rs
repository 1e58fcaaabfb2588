use std::os::unix::fs::FileExt as _;
struct F(std::fs::File);
impl inferspan::elf::Source for F {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
    fn read_at(&self, o: u64, b: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(b, o)
    }
}
fn main() {
    for p in std::env::args().skip(1) {
        let t = std::time::Instant::now();
        let f = F(std::fs::File::open(&p).unwrap());
        match inferspan::kernel::scan(&f) {
            Err(e) => println!("{p}: {e}"),
            Ok(t2) => {
                println!(
                    "{p}: {:?} kernels {} handles {} launches {} unread {} {:?}",
                    t2.found_by,
                    t2.kernels().len(),
                    t2.handles().len(),
                    t2.launches().len(),
                    t2.unread,
                    t.elapsed()
                );
                let out = format!("/tmp/names-wheels/mine-{}.json", p.replace('/', "_"));
                let reg: std::collections::BTreeMap<String, &str> =
                    t2.kernels().map(|(a, n)| (a.to_string(), n)).collect();
                let hnd: std::collections::BTreeMap<String, u64> =
                    t2.handles().iter().map(|(a, n)| (a.to_string(), *n)).collect();
                let lau: std::collections::BTreeMap<String, String> =
                    t2.launches().iter().map(|(a, n)| (a.to_string(), format!("{n:?}"))).collect();
                std::fs::write(
                    out,
                    serde_json::to_string(&serde_json::json!({"reg":reg,"hnd":hnd,"lau":lau})).unwrap(),
                )
                .unwrap();
            }
        }
    }
}
