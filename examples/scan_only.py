"""Only the scan, in a sequence model of your own: no spotter, no corpus, no recipe.

    python examples/scan_only.py

A layer with a selective scan learns to copy the last marked input of a sequence, and then runs one step at a time with
a carried state. Where Hugging Face's transformers is installed, one of its Mamba models trains and writes with it.
"""

import time
from importlib.util import find_spec

import torch
from torch import nn

from kwslib.scan import patch_transformers, selective_scan


class Layer(nn.Module):
    """(batch, length, d) -> the same, causal; the time is linear in the length."""

    def __init__(self, d, state=16):
        super().__init__()
        self.to_delta, self.to_B, self.to_C = nn.Linear(d, d), nn.Linear(d, state), nn.Linear(d, state)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(d, 1))
        self.D = nn.Parameter(torch.ones(d))

    def forward(self, u, state=None):
        """Returns y and the state after the last step, (batch, d, state)."""
        return selective_scan(
            u, self.to_delta(u), -self.A_log.exp(), self.to_B(u), self.to_C(u), self.D, delta_softplus=True,
            layout="bld", initial_state=state, return_last_state=True,
        )  # fmt: skip


def main(steps=150, length=20):
    torch.manual_seed(0)
    embed, layer, read = nn.Linear(2, 32), Layer(32), nn.Linear(32, 1)
    weights = [*embed.parameters(), *layer.parameters(), *read.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    for step in range(steps):
        value, mark = torch.randn(64, length), (torch.rand(64, length) < 0.2).float()
        mark[:, 0] = 1
        last = (mark * torch.arange(1, length + 1)).argmax(1)
        y, _ = layer(embed(torch.stack([value * mark, mark], -1)))
        loss = (read(y[:, -1])[:, 0] - value.gather(1, last[:, None])[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:3}  loss {loss.item():.3f}")
    x, state, parts = embed(torch.randn(1, length, 2)), None, []
    for t in range(length):  # what a stream does: one frame, constant time and memory
        y, state = layer(x[:, t : t + 1], state)
        parts.append(y)
    print(f"step by step equals all at once: {torch.allclose(torch.cat(parts, 1), layer(x)[0], atol=1e-5)}")
    return loss.item()


def language_model():
    """A step of training on transformers' own scan, and on this one; the text that both write."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, eos_token_id=None))
    tokens = torch.randint(200, (2, 64))

    def step():
        model.zero_grad()
        loss = model.train()(tokens, labels=tokens).loss
        loss.backward()
        text = model.eval().generate(tokens[:, :8], max_new_tokens=8, do_sample=False)
        started = time.perf_counter()
        model.train()(tokens, labels=tokens).loss.backward()
        return loss.item(), time.perf_counter() - started, text

    loss, took, text = step()
    with patch_transformers():  # or once, for good, without `with`
        our_loss, ours, our_text = step()
    print(f"transformers: loss {loss:.4f}, {1000 * took:.0f} ms a step; on kwslib's scan: {our_loss:.4f}, ", end="")
    print(f"{1000 * ours:.0f} ms; same text: {torch.equal(text, our_text)}")


if __name__ == "__main__":
    main()
    if find_spec("transformers"):
        language_model()
