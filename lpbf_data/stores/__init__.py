"""Storage formats of cases: Parquet, Zarr, npz, Arrow, the manifest, predictions; one module a format.

A module has both the reader and the writer of its format, so that they share its constants and schema.
"""
