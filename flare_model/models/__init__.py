"""The models that come with the package: FLARE, Transformer, Transolver, and what any model must do.

One backbone, and what their heads communicate; nothing here knows of files or training.
"""
