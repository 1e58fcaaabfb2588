//! The few JSON fields that tracing needs, out of bodies that may be cut.
//!
//! Enters: body bytes as they come, cut anywhere, with word of the gaps. Leaves: scalars by name. Invariant: nothing of a
//! body is kept but the value being read (at most [`scan::MAX_VALUE`] bytes) and, after a gap, a window of its last bytes;
//! what is given is what a full parse would give, what is not known is absent. Refused: longer values, and bodies that are
//! not JSON objects.

mod request;
mod response;
mod scan;
mod tail;

pub use request::{RequestBody, RequestFields};
pub use response::{ResponseBody, ResponseFields};
