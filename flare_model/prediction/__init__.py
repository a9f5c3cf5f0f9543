"""Parts to predict on, read from data sets, meshes, surfaces and results of simulations, and pictures of predictions.

Predicting itself is in `decision/prediction.py`.
"""
