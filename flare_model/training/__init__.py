"""Training a model: recipe, settings, devices, the trainer and its parts, checkpoints and log of a run.

A run that was stopped resumes exactly, as if it had not been.
"""
