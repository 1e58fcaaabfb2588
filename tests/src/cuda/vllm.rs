//! The real vLLM on CPU, with a plug-in that drives the fake CUDA.
