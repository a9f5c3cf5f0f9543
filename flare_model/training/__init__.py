"""How a model is trained: recipe, settings, devices, the trainer, state and log of a run.

A run that is stopped goes on from here as if it had not been.
"""
