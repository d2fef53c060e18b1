"""Padding: which frames of a batch are a clip's own, and means over those alone."""

from __future__ import annotations

import torch


def valid_mask(x, lengths):
    """(B, T, 1) of 1 for valid frames and 0 for padding, in x's dtype; x is (B, T, …)."""
    if lengths is None:
        return x.new_ones(len(x), x.shape[1], 1)
    lengths = torch.as_tensor(lengths, device=x.device)
    return (torch.arange(x.shape[1], device=x.device) < lengths[:, None]).to(x.dtype)[:, :, None]


def masked_mean(x, lengths):
    """Mean of (B, T, d) over the valid frames; at least one frame counts."""
    if lengths is None:
        return x.mean(1)
    mask = valid_mask(x, lengths.clamp(min=1))
    return (x * mask).sum(1) / mask.sum(1)
