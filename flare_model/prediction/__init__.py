"""Predicting a part: where it is read from, and what is written of it."""
