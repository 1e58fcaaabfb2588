use std::io::BufRead as _;
fn main() {
    let mut m: std::collections::BTreeMap<(String, String), usize> = Default::default();
    for l in std::io::stdin().lock().lines() {
        let l = l.unwrap();
        let k = inferspan::kernel::name::Kernel::named(&l);
        if std::env::args().nth(1).as_deref() == Some("full") && k.class.name() == "other" {
            println!("{} {}", k.short, &k.demangled[..k.demangled.len().min(300)]);
        }
        *m.entry((k.class.name().to_owned(), k.short)).or_default() += 1;
    }
    if std::env::args().nth(1).is_none() {
        for ((c, s), n) in m {
            println!("{c}\t{n}\t{s}");
        }
    }
}
