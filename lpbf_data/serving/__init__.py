"""Data sets, streams, samplers, batches, loaders and transforms: what training programs use.

Order, shares of ranks and workers, and positions to resume from are decided here.
"""
