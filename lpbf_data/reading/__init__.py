"""From the address of a data set to the tensors of one case: catalog, readers of splits and shards, the cache.

Which cases are read, in which order and for whom, is up to `serving`.
"""
