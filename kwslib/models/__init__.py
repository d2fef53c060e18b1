"""Keyword spotters, each called `model(inputs, lengths)`: features (B, T, F) and valid frames (B,) to logits (B, classes)."""
