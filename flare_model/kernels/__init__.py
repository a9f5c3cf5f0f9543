"""FLARE's token mixing as Triton kernels, forward and backward; NOTES.md beside them says how they work."""
