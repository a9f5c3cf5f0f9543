"""How a model is trained: recipe, settings, devices, the trainer, state and log of a run."""
