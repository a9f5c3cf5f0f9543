"""The stiffness of a growing part by conjugate gradients with smoothed-aggregation multigrid."""
