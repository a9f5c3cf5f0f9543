"""A model with its weights on disk and on the hub, and its use in millimetres.

What a checkpoint says of its model is checked here before anything is loaded.
"""
