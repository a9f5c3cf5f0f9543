"""Predicting a part: where it is read from, what the model says of it, and what is written.

Data sets, meshes, surfaces and results of simulations come in; VTU files and pictures go out.
"""
