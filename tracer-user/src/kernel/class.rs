//! What kind of work a kernel does, by its name.
//!
//! Enters: the short and the demangled form of a name. Leaves: a [`Class`]. The rules are data, tried from the top; the first that matches
//! wins, so what is named after two things (`reshape_and_cache_flash_kernel`, a GEMM with `relu` in its name) is what stands higher. They
//! look at the short form alone, because template arguments name everything a kernel is made of (`Copy_Atom` in each of cutlass's), except
//! for kernels that are nothing but a frame for their argument. No rule is `other`.

use serde::{Deserialize, Serialize};

/// Kinds of work. The names are those of the metrics' labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Attention,
    /// Matrix products, and convolutions, which are computed as such.
    Gemm,
    Norm,
    Activation,
    /// From logits to a token: softmax over the vocabulary, top-k and top-p, penalties, random draws.
    Sampling,
    /// Writes to and reads from the KV cache that are not attention.
    Cache,
    Communication,
    Copy,
    Other,
}

impl Class {
    pub const ALL: [Self; 9] = [
        Self::Attention,
        Self::Gemm,
        Self::Norm,
        Self::Activation,
        Self::Sampling,
        Self::Cache,
        Self::Communication,
        Self::Copy,
        Self::Other,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Gemm => "gemm",
            Self::Norm => "norm",
            Self::Activation => "activation",
            Self::Sampling => "sampling",
            Self::Cache => "cache",
            Self::Communication => "communication",
            Self::Copy => "copy",
            Self::Other => "other",
        }
    }
}

/// A class, and the parts of a lower-case name that stand for it.
type Rule = (Class, &'static [&'static str]);

/// Kernels that are a frame: `(part of the short form, rules for the demangled form)`.
const FRAMES: [(&str, &[Rule]); 9] = [
    ("elementwise_kernel", &ELEMENT),
    ("elementwise_grid_stride_kernel", &ELEMENT),
    ("distribution_nullary_kernel", &ELEMENT),
    ("at::native::reduce_kernel", &REDUCED),
    ("fused_dropout_kernel", &[]),
    ("cutlass::device_kernel", &CUTLASS),
    ("cutlass::kernel", &CUTLASS),
    // A kernel's name handed on as a type.
    ("kernel_cutlass_", &CUTLASS),
    ("multi_tensor_apply_kernel", &ELEMENT),
];

const ELEMENT: [Rule; 3] = [
    (Class::Copy, &["copy_kernel", "copyfunctor", "::copy_"]),
    (
        Class::Activation,
        &[
            "silu_kernel",
            "gelu",
            "relu",
            "sigmoid_kernel",
            "tanh_kernel",
            "softplus",
            "mish",
            "hardswish",
            "hardtanh",
            "elu_kernel",
            "glu_kernel",
            "threshold_kernel",
            "softshrink",
            "hardshrink",
            "swish",
        ],
    ),
    (Class::Sampling, &["exponential_kernel", "multinomial", "gumbel"]),
];

const REDUCED: [Rule; 1] = [(Class::Sampling, &["argmax"])];

const CUTLASS: [Rule; 2] = [
    (Class::Attention, &["flash", "fmha", "attention", "attn", "mla_", "::mla", "sm100fmha", "sm100mla"]),
    // Any other kernel of cutlass's frames.
    (Class::Gemm, &[""]),
];

const RULES: [Rule; 12] = [
    (
        Class::Communication,
        &[
            "nccl",
            "nvshmem",
            "all_reduce",
            "allreduce",
            "all_gather",
            "allgather",
            "reduce_scatter",
            "reducescatter",
            "cross_device",
            "all_to_all",
            "alltoall",
            "one_shot",
            "two_shot",
            "oneshot",
            "twoshot",
            "multimem",
            "mnnvl",
            "lamport",
            "onerankreduce",
            "internode",
            "intranode",
            "deep_ep",
            "gloo::",
        ],
    ),
    // Ahead of `cache`, which is what they read.
    (Class::Attention, &["attention", "batchdecode", "batchprefill", "singledecode", "singleprefill", "batchpaged"]),
    (
        Class::Cache,
        &[
            "_cache",
            "kvcache",
            "kv_cache",
            "cache_kernel",
            "copy_blocks",
            "swap_blocks",
            "kvinsert",
            "kvropequantinsert",
            "dsmla",
            "paged_kv",
        ],
    ),
    (
        Class::Attention,
        &[
            "attn",
            "fmha",
            "flash_",
            "flash::",
            "flashmla",
            "mla_",
            "_mla",
            "mla::",
            "sdpa",
            "mha_",
            "lse_combine",
            "_fwd_kernel_stage",
            "_fwd_grouped_kernel",
            "masked_softmax",
            "softmax_warp",
            "softmaxwarp",
            "kda_",
            "sparse_fwd",
        ],
    ),
    (
        Class::Norm,
        &[
            "rms_norm",
            "rmsnorm",
            "layer_norm",
            "layernorm",
            "group_norm",
            "groupnorm",
            "batch_norm",
            "batchnorm",
            "instancenorm",
            "l2norm",
            "qknorm",
            "qk_norm",
            "qnorm",
            "normrope",
            "norm_kernel",
            "norm_fwd",
            "norm_bwd",
            "bn_fw",
            "bn_bw",
            "bn_fprop",
            "bn_stats",
            "bn_apply",
            "reduce_rms",
            "gammabeta",
            "rowwisemoments",
            "welford",
            "fusedparamscuda",
            "internalgradients",
        ],
    ),
    (
        Class::Gemm,
        &[
            "gemm",
            "gemv",
            "matmul",
            "nvjet",
            "cutlass",
            "xmma",
            "splitk",
            "split_k_",
            "marlin",
            "awq",
            "gptq",
            "cublaslt",
            "fprop",
            "dgrad",
            "wgrad",
            "winograd",
            "convolve",
            "conv2d",
            "conv3d",
            "convolution",
            "dconv",
            "x_cudnn_",
            "scudnn",
            "h884cudnn",
            "trsm",
            "trmm",
            "syrk",
            "syr2k",
            "symm_",
            "herk_",
            "syherk",
            "her2k",
            "hemm",
            "_mm_",
            "_bmm",
            "scaled_mm",
            "fused_moe_kernel",
            "h16816",
            "s16816",
            "h1688",
            "s1688",
            "s884",
            "h884",
        ],
    ),
    // Of a mixture of experts, which chooses experts and not tokens.
    (
        Class::Other,
        &[
            "topkgating",
            "moetopk",
            "moesoftmax",
            "moesigmoid",
            "grouped_topk",
            "single_group_topk",
            "moe_",
            "hashtopk",
            "routing",
        ],
    ),
    (
        Class::Sampling,
        &[
            "sampling",
            "sample_kernel",
            "samplemultinomial",
            "topk",
            "top_k",
            "topp",
            "top_p",
            "min_p",
            "multinomial",
            "argmax",
            "penalt",
            "logit",
            "softmax",
            "rejection",
            "gumbel",
            "bincount",
            "vocab_prune",
            "exponential",
        ],
    ),
    (
        Class::Activation,
        &[
            "silu",
            "gelu",
            "relu",
            "swish",
            "swiglu",
            "geglu",
            "sigmoid",
            "softplus",
            "_and_mul",
            "act_and_mul",
            "activation",
            "tanh",
            "glu_kernel",
            "::glu_",
        ],
    ),
    (
        Class::Copy,
        &[
            "copy",
            "memcpy",
            "memset",
            "transpose",
            "permute",
            "concat",
            "catarray",
            "_clone",
            "lacpy",
            "scatter_gather_elementwise",
            "im2col",
        ],
    ),
    (Class::Attention, &["mla"]),
    (Class::Gemm, &["deep_gemm"]),
];

/// Bytes of a demangled name that are looked at: the frame's argument stands in front.
const LOOKED_AT: usize = 4096;

pub(super) fn of(short: &str, demangled: &str) -> Class {
    let lower = short.to_ascii_lowercase();
    // Frames are told by their own names, not by what is in them.
    if let Some((_, rules)) = FRAMES.iter().find(|(frame, _)| lower.contains(frame)) {
        let mut end = demangled.len().min(LOOKED_AT);
        while !demangled.is_char_boundary(end) {
            end -= 1;
        }
        return first(rules, &demangled[..end].to_ascii_lowercase());
    }
    if let Some(fused) = lower.strip_prefix("triton_") {
        return of_inductor(fused);
    }
    // Triton's own example, as it is known everywhere.
    if lower == "_fwd_kernel" || lower == "_bwd_kernel" {
        return Class::Attention;
    }
    first(&RULES, &lower)
}

/// A kernel that PyTorch's compiler made: the name lists all that it does (`poi_fused__to_copy_add_mul_silu_0`).
fn of_inductor(fused: &str) -> Class {
    // A change of type on the way is no copy, and a reciprocal root is what a norm is made of.
    let plain = fused.replace("_to_copy", "");
    match first(&RULES, &plain) {
        Class::Other | Class::Activation | Class::Copy if plain.contains("rsqrt") => Class::Norm,
        Class::Other if plain.starts_with("tem_") => Class::Gemm,
        class => class,
    }
}

fn first(rules: &[Rule], name: &str) -> Class {
    rules
        .iter()
        .find(|(_, parts)| parts.iter().any(|part| name.contains(part)))
        .map_or(Class::Other, |(class, _)| *class)
}

#[cfg(test)]
#[path = "class_tests.rs"]
mod tests;
