"""What is learned: splits, targets, batches, normalisation, error measures, range of the training data.

Between the loaders of `lpbf_data` and a model, and the same for training, evaluation and prediction.
"""
