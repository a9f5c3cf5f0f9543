"""What is measured and checked on one case, and its conversion: counts, extremes, statistics, digests of its shape.

One case at a time; what many of them come to is the business of `selection` and `reporting`.
"""
