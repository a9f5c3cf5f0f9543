"""The token mixing of FLARE and FLARE++ and FLARE's pointwise network as Triton kernels, forward and backward.

NOTES.md in this folder says how they work; `flare_model.layers` has the same computations in readable form.
"""
