"""FLARE's token mixing and pointwise network as Triton kernels, forward and backward.

NOTES.md beside them says how they work; `layers` has the readable form that they must equal.
"""
