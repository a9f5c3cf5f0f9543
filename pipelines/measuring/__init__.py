"""What is measured and checked on one case, and its conversion: counts, extremes, statistics, digests of its shape.

One case at a time; many cases together are for `selection` and `reporting`.
"""
