"""Layers of the models: mixer, attention, pointwise networks, meshes and tiles of a batch.

They are the readable reference, and choose the kernels that compute them on a device.
"""
