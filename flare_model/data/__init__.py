"""The data as a model gets them: splits, targets, features, batches, normalisation, error metrics, training envelope.

Between the loaders of `lpbf_data` and a model, and the same for training, evaluation and prediction.
"""
