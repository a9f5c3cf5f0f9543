"""What is learned: splits, targets, batches, error measures, range of the training data."""
