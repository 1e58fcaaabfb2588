//! From where on something is worth a word. Times in ns.

const MS: u64 = 1_000_000;

/// A request that took less is not judged: what a host's scheduler makes of two threads is as much.
pub const NOISE: u64 = 5 * MS;
/// A cause that cost less than this is not named, nor one that cost a smaller share: nobody would have noticed.
pub const LEAST: u64 = 5 * MS;
pub const LEAST_SHARE: f64 = 0.05;
/// What front ends, clients and single steps cost at least: a busy host makes threads wait so long without anything being wrong.
pub const LEAST_ON_A_BUSY_HOST: u64 = 20 * MS;
/// A share that work needs: the prompt itself, prompts of others, steps. Some of it is in every request.
pub const LEAST_SHARE_OF_WORK: f64 = 0.10;
/// That single slow steps need: on a busy host some are.
pub const LEAST_SHARE_OF_STEPS: f64 = 0.20;

/// A wait of so many usual steps is none: whoever comes waits for the step that runs, and engines schedule one ahead.
pub const WAIT_STEPS: u64 = 2;
/// From here on the KV cache is full: the last blocks are too few for what waits.
pub const KV_FULL: f64 = 0.90;
/// Up to here it is not what a request waits for.
pub const KV_FREE: f64 = 0.50;
/// The batch is full where as many run as ever did, in so many of the steps, and had in some [`LIKE`] or more before.
pub const BATCH_FULL: f64 = 0.80;
/// The part of a wait that other prompts have to fill, one in the engine or any in the tokenizer, to be what was waited for.
pub const WAIT_BEHIND_PROMPT: f64 = 0.70;

/// A prefill of up to so many usual steps is not long.
pub const PREFILL_STEPS: u64 = 3;
/// Nor is one of a prompt of fewer tokens: kernels take as long for one.
pub const LONG_PROMPT: u64 = 256;
/// Fewer tokens of others' prompts make no step longer: that is the time of a batch of so many.
pub const FEW: u64 = 64;
/// A step with others' prompts in it is slower by more than this part of a usual one.
pub const SLOWED: f64 = 0.5;
/// A prompt was computed in a step where it overlaps this part of it: engines schedule one step ahead.
pub const OVERLAP: f64 = 0.2;

/// Like batches are so many at least, or nothing is usual.
pub const LIKE: usize = 8;
/// A step is slow that takes so many times as long as the usual one of its like; as decode steps that are shown one by one.
pub const SLOW_STEP: u64 = 3;
/// Slow steps are usual where they took up to so many times the part of the time that they took before.
pub const MORE_THAN_BEFORE: f64 = 2.0;
/// A step that takes so long is no noise of a busy host, unless so many took half as long before it came.
pub const STALL: u64 = 300 * MS;
pub const USUAL_STALLS: usize = 3;
/// And one of so long is named from [`LEAST_SHARE`] on: who waits for the next token notices it in an answer of any length.
pub const LONG_STALL: u64 = 1_000 * MS;
/// All of a request's steps are slow where their median is so many times the one before it came.
pub const SLOW_ENGINE: u64 = 2;

/// A request is launch-bound where the GPU had nothing for this part of its steps, with so many launches a step.
pub const GAP: f64 = 0.5;
pub const MANY_LAUNCHES: f64 = 64.0;
/// And sync-bound where the CPU waited for this part of them, so many times a step and process: one is how every step ends.
pub const WAITING: f64 = 0.5;
pub const MANY_WAITS: f64 = 8.0;
/// A rank is a straggler that came last in this part of the steps.
pub const LAST: f64 = 0.6;

/// Steps before a request that are looked at for what is usual.
pub const BEFORE: usize = 512;
/// And after it: a prompt of 128,000 tokens takes so many of 512.
pub const AFTER: usize = 256;
