"""What users hold: data sets, streams, samplers, batches, loaders and transforms.

Order, shares of ranks and workers, and positions to resume from are decided here.
"""
