"""The token mixing of FLARE and FLARE++ and FLARE's pointwise network as Triton kernels, forward and backward.

NOTES.md in this folder says how they work; `cpu` has kernels for CPUs, `flare_model.layers` all in readable form.
"""
