//! A front end's decoder of messages: it gets to a message that it received.

use tracer_ebpf::wire::call::FUNCTION_DECODE;

use super::{ENTERED, Family, Scope};
use crate::discover::kind::Kind;
use crate::input::{Probe, Role};

pub static MESSAGES: Family = Family {
    what: "decoder of messages (msgspec)",
    without: "ttft_engine ends when the first token arrives, not when the server takes it up",
    probe: Probe::FrontEnd,
    kind: Kind::Messages,
    roles: &[Role::Api],
    // An engine decodes as well.
    scope: Scope::Process,
    programs: ENTERED,
    // `JSONDecoder_decode` is another one; `.cold` is no entry.
    points: |code| code.functions(|symbol| (symbol == "Decoder_decode").then_some(FUNCTION_DECODE)),
    hidden: "it has no symbols (stripped), so its functions cannot be found",
};
