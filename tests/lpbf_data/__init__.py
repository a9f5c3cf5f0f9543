"""Tests of lpbf_data."""
