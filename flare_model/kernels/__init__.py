"""The token mixing of FLARE and FLARE++ and FLARE's pointwise network as Triton kernels, forward and backward.

NOTES.md beside them says how they work; `layers` has the readable form that they must equal.
"""
