"""Recordings to batches of features."""
