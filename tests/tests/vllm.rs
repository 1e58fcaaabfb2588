//! The product against the real vLLM 0.32 on CPU, with the server's own `/metrics` as judge.
//!
//! Needs root, `INFERSPAN_VLLM_VENV` and `INFERSPAN_VLLM_MODEL`; says loudly when it is skipped.

use std::time::Duration;

use inferspan_harness::folder::Folder;
use inferspan_harness::installed::Vllm;
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;
use inferspan_tests::judge::{Expect, Plan, Target, at_rest, under_load};
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::{Kind, Load, Until};

#[test]
fn every_number_and_every_tree_of_a_real_server_is_right() {
    if !may_trace("every_number_and_every_tree_of_a_real_server_is_right") {
        return;
    }
    let Some(installed) = Vllm::from_env() else { return };
    // 24 blocks of 32 tokens hold one and a half of the longest sequences, so that there are preemptions.
    let arguments = ["--enable-prompt-tokens-details", "--num-gpu-blocks-override", "24", "--block-size", "32"];
    let folder = Folder::new("vllm").unwrap();
    let server = Server::start_vllm(&installed, folder.path(), &Interrupt::never(), &arguments, &[]).unwrap();
    let target = Target::from(&server);
    let kinds = Kind::generating();

    // The first sampled and the first n=2 request are compiled for, up to 40 s; that is not what is measured.
    let warm = Load {
        url: target.url.clone(),
        model: target.model.clone(),
        kinds: kinds.clone(),
        clients: 2,
        until: Until::Requests(kinds.len()),
        seed: 99,
    };
    let warmed = warm.run().unwrap();
    eprintln!("warm after {:.1} s", warmed.elapsed);

    let plan = Plan {
        kinds,
        until: Until::Elapsed(Duration::from_secs(25)),
        clients: 6,
        seed: 11,
        expect: Expect { tokenizer: true, since: 0.0 },
    };
    let rest = at_rest(&target, &plan, &folder.path().join("at-rest")).unwrap();
    let plan = Plan { until: Until::Elapsed(Duration::from_secs(12)), ..plan };
    let late = under_load(&target, &plan, &folder.path().join("under-load")).unwrap();
    for table in &rest.tables {
        eprintln!("{table}");
    }
    inferspan_tests::judge::verdict(&[rest.faults, late.faults].concat());
}
