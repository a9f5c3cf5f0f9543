"""Training steps and validation recorded as CUDA graphs."""
