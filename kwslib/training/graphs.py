"""Training steps as CUDA graphs: one launch in place of the thousand small ones that a small model costs a GPU."""

import torch
from torch import nn

from kwslib.io import KwsError

MOST = 8  # recordings: clips played faster or slower give batches of a few lengths


class Graphed(nn.Module):
    """Calls `module`; in training, a batch is replayed from a recording of the first batch of its shape, forward and
    backward (`torch.cuda.make_graphed_callables`). Evaluation, and shapes beyond MOST, run as they are. The weights
    stay where they are: the optimizer must change them in place. bf16: whether the recordings compute in it.

    Raises KwsError for a module that cannot be recorded, since it waits for the GPU."""

    def __init__(self, module, bf16=False):
        super().__init__()
        self.module, self.bf16, self.replays = module, bf16, {}

    def forward(self, inputs, lengths):
        if not self.training:
            return self.module(inputs, lengths)
        if inputs.shape not in self.replays:
            if len(self.replays) == MOST:
                return self.module(inputs, lengths)
            self.replays[inputs.shape] = (self.record(inputs, lengths),)  # in a tuple: no submodule twice
        return self.replays[inputs.shape][0](inputs, lengths)

    def record(self, inputs, lengths):
        """Warm-up and recording leave no trace: random numbers and batch norm's statistics are put back."""
        kept = {k: v.clone() for k, v in self.module.state_dict().items()}
        state, step = torch.cuda.get_rng_state(), _Step(self.module).train()
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
                sample = inputs.clone(), lengths.clone()
                torch.cuda.make_graphed_callables(step, sample, allow_unused_input=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:
            told = f"the model cannot be recorded as a CUDA graph ({str(e).splitlines()[0]})"
            raise KwsError(f"{told}; set graphs to false, or let its forward pass not wait for the GPU") from e
        self.module.load_state_dict(kept)
        torch.cuda.set_rng_state(state)
        return step


class _Step(nn.Module):
    """What is recorded: it gets a `forward` that replays, so that the module keeps its own."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs, lengths):
        return self.module(inputs, lengths)
