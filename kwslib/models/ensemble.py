"""Several models in one: `build("mamba_light", 3, members=2)`."""

from torch import nn


class Ensemble(nn.Module):
    """Models of one kind, trained apart; logits (B, classes) are the mean of theirs (Hansen & Salamon 1990)."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs, lengths=None):
        return sum(member(inputs, lengths) for member in self.members) / len(self.members)


def members_of(model):
    """The models that an Ensemble is made of; any other is its only one."""
    return list(model.members) if isinstance(model, Ensemble) else [model]
