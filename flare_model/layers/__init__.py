"""Layers of the models: mixer, attention, pointwise networks, meshes and tiles of a batch.

The code here is the readable reference; on a GPU it calls the kernels of `flare_model.kernels` where they can run.
"""
