"""Tests of flare_model."""
