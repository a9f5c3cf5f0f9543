"""Storage formats: Parquet, Zarr, npz, Arrow, the manifest, predictions; a module each, with reader and writer."""
