"""How a model is trained: recipe, settings, devices, the trainer and its parts, state and log of a run.

A run that is stopped goes on from here as if it had not been.
"""
