"""How a model is trained: recipe, settings, devices, the trainer and its parts, state and log of a run."""
