"""FLARE's forward pass without gradients on a CPU, by kernels that LLVM compiles when they are first used.

`flare_model.layers.backend` says when they are taken.
"""
