//! Names as the libraries register them, or as their makers' compilers write them.

use super::super::name::Kernel;
use super::*;

fn class_of(name: &str) -> &'static str {
    Kernel::named(name).class.name()
}

#[allow(clippy::too_many_lines, reason = "a table: its rows say more together")]
#[test]
fn real_kernels_have_the_class_of_what_they_do() {
    for (class, names) in [
        (
            "attention",
            &[
                "_ZN5flash24flash_fwd_splitkv_kernelI23Flash_fwd_kernel_traitsILi96ELi64ELi64ELi4ELb0ELb0EN7cutlass6half_tE19Flash_kernel_traitsILi96ELi64ELi64ELi4ES3_EELb0ELb0ELb0ELb0ELb0ELb0ELb0ELb0EEEvNS_16Flash_fwd_paramsE",
                "fmha_cutlassF_bf16_aligned_64x128_rf_sm80",
                "_fwd_kernel",
                "_fwd_grouped_kernel_stage1",
                "kernel_unified_attention_2d",
                "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7",
                "vllm::merge_attn_states_kernel",
                "flashinfer::BatchDecodeWithPagedKVCacheKernel",
                "vllm::paged_attention_v1_kernel",
                "softmax_warp_forward",
            ][..],
        ),
        (
            "gemm",
            &[
                "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas",
                "nvjet_tst_128x8_64x12_4x1_v_bz_splitK_TNT",
                "ampere_bf16_s16816gemm_bf16_128x64_ldg8_relu_f2f_stages_64x3_tn",
                "_ZN7cutlass7Kernel2I46cutlass_70_simt_dgemm_grouped_64x64_8x2_align1EEvNT_6ParamsE",
                "cublasLt::splitKreduce_kernel",
                "_Z18sgemm_largek_lds64ILb1ELb1ELi5ELi5ELi4ELi4ELi4ELi34EEvv",
                "marlin::Marlin",
                "fused_moe_kernel",
                "triton_tem_fused_mm_3",
                "_5x_cudnn_ampere_int8_i8816cudnn_int8_128x128_ldg16_relu_singleBuffer_small_nt_v1",
                "gemvNSP_kernel",
            ],
        ),
        (
            "norm",
            &[
                "_ZN4vllm15rms_norm_kernelIfLi1ELi2ELb0EEEvPT_PKS1_lllllS4_lfii",
                "vllm::fused_add_rms_norm_kernel",
                "at::native::vectorized_layer_norm_kernel",
                "flashinfer::norm::RMSNormKernel",
                "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0",
                "cudnn::bn_fw_inf_1C11_kernel_NCHW",
            ],
        ),
        (
            "activation",
            &[
                "_ZN4vllm25masked_act_and_mul_kernelIfXadL_ZNS_11gelu_kernelIfEET_RKS2_fEELb1ELb0ELb0EEEvPS2_PS3_PKiiifff",
                "_ZN2at6native29vectorized_elementwise_kernelILi2EZZZNS0_62_GLOBAL__N__e7db5ad4_23_ActivationSiluKernel_cu_e5d96c45_4333911silu_kernelERNS_18TensorIteratorBaseEENKUlvE_clEvENKUlvE_clEvEUldE_St5arrayIPcLm2EELb0EEEviT0_T1_",
                "vllm::silu_and_mul_per_block_quant_kernel",
                "triton_poi_fused_mul_silu_1",
            ],
        ),
        (
            "sampling",
            &[
                "_ZN2at6native43_GLOBAL__N__f71e7945_10_SoftMax_cu_9f978f6319cunn_SoftMaxForwardILi2EdddNS1_22SoftMaxForwardEpilogueEEEvPT2_PKT0_i",
                "_ZN2at6native13reduce_kernelILi128ELi4ENS0_8ReduceOpIaNS0_9ArgMaxOpsIaEEjlLi4ELi4EEEEEvT1_",
                "at::native::sbtopk::gatherTopK",
                "flashinfer::sampling::TopKTopPSamplingFromProbKernel",
                "vllm::apply_repetition_penalties_kernel",
                "rejection_greedy_sample_kernel",
                "_topk_topp_kernel",
            ],
        ),
        (
            "cache",
            &[
                "_ZN4vllm30reshape_and_cache_flash_kernelIffLNS_18Fp8KVCacheDataTypeE0EEEvPKT_S4_PT0_S6_PKlllllliiiPKfSA_i",
                "vllm::concat_and_cache_mla_kernel",
                "vllm::gather_and_maybe_dequant_cache_page",
                "copy_blocks_kernel",
                "reshape_and_cache_kernel_flash",
            ],
        ),
        (
            "communication",
            &[
                "_Z21ncclDevKernel_Generic24ncclDevKernelArgsStorageILm4096EE",
                "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
                "vllm::cross_device_reduce_1stage",
                "multimem_all_reduce_kernel",
                "vllm::tensorrt_llm::minimax_reduce_rms_kernel_lamport",
            ],
        ),
        (
            "copy",
            &[
                "_ZN2at6native29vectorized_elementwise_kernelILi2EZNS0_23direct_copy_kernel_cudaERNS_18TensorIteratorBaseEEUlN3c1016Float4_e2m1fn_x2EE_St5arrayIPcLm2EELb0EEEviT0_T1_",
                "_ZN2at6native40_GLOBAL__N__f1f992fe_8_Shape_cu_49f7391c19CatArrayBatchedCopyINS1_10OpaqueTypeILj1EEEjLi1ELi64ELi64EEEvPT_NS1_25CatArrInputTensorMetadataIS5_T0_XT2_EXT3_EEENS1_16TensorSizeStrideIS8_Lj4EEEiS8_",
                "triton_poi_fused_clone_2",
            ],
        ),
        (
            "other",
            &[
                "_ZN2at6native29vectorized_elementwise_kernelILi2ENS0_15CUDAFunctor_addIaEESt5arrayIPcLm3EELb0EEEviT0_T1_",
                "_ZN4vllm3moe10topkGatingILi1ELi1ELi4ELi4ELi32EifLNS0_11ScoringFuncE0EEEvPKT5_PKbPfiPT4_PiiiibPKfdS7_",
                "vllm::rotary_embedding_kernel",
                "vllm::static_scaled_int8_quant_kernel",
                "at::native::grid_sampler_2d_kernel",
                "at::native::philox_key_split_kernel",
                "triton_poi_fused__to_copy_add_0",
                "add_kernel",
                "",
            ],
        ),
    ] {
        for name in names {
            assert_eq!(class_of(name), class, "{name}");
        }
    }
}

#[test]
fn a_frame_of_cutlass_is_what_it_holds() {
    let flash =
        "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<cute::Copy_Atom<int>>>>(P)";
    let gemm = "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::Copy_Atom<int>>>(P)";
    assert_eq!(of("cutlass::device_kernel", flash), Class::Attention);
    assert_eq!(of("cutlass::device_kernel", gemm), Class::Gemm);
}

#[test]
fn every_class_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> = Class::ALL.map(Class::name).into();
    assert_eq!(names.len(), Class::ALL.len());
}
