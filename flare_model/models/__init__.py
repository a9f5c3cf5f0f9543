"""The models that come with the package: FLARE, FLARE++ and those that they are compared with, and what any must do.

One backbone, and what FLARE's heads communicate; nothing here knows of training.
"""
