"""How cases lie on disk: Parquet, Zarr, npz, Arrow, the manifest, predictions; one module a format.

Reader and writer of a format stand together, so that what one knows the other knows too.
"""
