"""Training steps as CUDA graphs: one launch in place of the thousand small ones that a small model costs a GPU."""

import torch
from torch import nn


class Graphed(nn.Module):
    """Calls `module`; in training, batches of the first batch's shape are replayed from a recording of it, forward and
    backward (`torch.cuda.make_graphed_callables`). Other shapes, and evaluation, run as they are. The weights stay
    where they are: the optimizer must change them in place. bf16: whether the recording computes in it."""

    def __init__(self, module, bf16=False):
        super().__init__()
        self.module, self.bf16, self.shape = module, bf16, None

    def forward(self, inputs, lengths):
        if self.training and self.shape is None:
            self.record(inputs, lengths)
        if self.training and inputs.shape == self.shape:
            return self.replay[0](inputs, lengths)
        return self.module(inputs, lengths)

    def record(self, inputs, lengths):
        """Warm-up and recording leave no trace: random numbers and batch norm's statistics are put back."""
        kept = {k: v.clone() for k, v in self.module.state_dict().items()}
        state, step = torch.cuda.get_rng_state(), _Step(self.module).train()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            sample = inputs.clone(), lengths.clone()
            torch.cuda.make_graphed_callables(step, sample, allow_unused_input=True)
        self.module.load_state_dict(kept)
        torch.cuda.set_rng_state(state)
        self.replay, self.shape = (step,), inputs.shape  # in a tuple: no submodule twice


class _Step(nn.Module):
    """What is recorded: it gets a `forward` that replays, so that the module keeps its own."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs, lengths):
        return self.module(inputs, lengths)
