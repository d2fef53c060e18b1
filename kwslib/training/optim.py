"""How weights move: optimizers, the learning rate of each step, and the running average of the weights."""

import copy
import math

import torch


def make_optimizer(model, config, device, given=()):
    """`config.optimizer` over the weights of `model`, which decay as `config.decay` says; sgd has momentum 0.9.

    given: names of the weights that `config.init` gave: they learn at the share `init_lr` of the rate, or not at 0."""
    groups = parameter_groups(model, config.weight_decay, config.decay)
    if given and config.init_lr < 1:
        taken = {id(p) for name, p in model.named_parameters() if name in given}
        slow = [g | {"params": [p for p in g["params"] if id(p) in taken], "share": config.init_lr} for g in groups]
        groups = [g | {"params": [p for p in g["params"] if id(p) not in taken]} for g in groups]
        if config.init_lr:
            groups += slow
        else:
            for group in slow:
                for p in group["params"]:
                    p.requires_grad_(False)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=device.type != "mps")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return NovoGrad(groups, lr=config.lr)


def parameter_groups(model, weight_decay, decay="matrices"):
    """matrices: decay for matrices and kernels; none for biases, norms and Mamba's A_log, D, as Mamba's authors want.
    all: decay for every weight, as the published runs (they ignored those wishes), BC-ResNet and MatchboxNet train."""
    groups = {"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}
    for p in model.parameters():
        groups[decay == "matrices" and (p.dim() <= 1 or getattr(p, "no_decay", False))]["params"].append(p)
    return list(groups)


class NovoGrad(torch.optim.Optimizer):
    """Gradients divided by a running norm of their layer, then momentum (Ginsburg et al. 2019, algorithm 1)."""

    def __init__(self, params, lr, betas=(0.95, 0.5), eps=1e-8, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state, square = self.state[p], p.grad.square().sum()
                # the first step's own norm starts the average: no bias to correct
                state["second"] = beta2 * state["second"] + (1 - beta2) * square if state else square
                state.setdefault("first", torch.zeros_like(p))
                update = p.grad / (state["second"].sqrt() + group["eps"]) + group["weight_decay"] * p
                state["first"].mul_(beta1).add_(update)
                p.sub_(group["lr"] * state["first"])


class Schedule:
    """Learning rate of a step: linear warm-up over `warmup` of the run, then down to `final_lr` of the peak, over
    `horizon` runs. cosine: the last step has the last rate. clamped: the published one, whose first step has rate 0 and
    whose cosine falls to 0 but is cut off at `final_lr`. hold: the peak for 45 % of the steps, then a quadratic fall
    (MatchboxNet). steps: 1, 1/5 and 1/25 of the peak for a third of the steps each (Hello Edge)."""

    def __init__(self, config, steps_per_epoch):
        self.kind, self.peak, self.final = config.schedule, config.lr, config.final_lr
        steps = steps_per_epoch * config.epochs
        self.total = round(config.horizon * steps)
        self.warmup = max(0 if self.kind == "clamped" else 1, round(config.warmup * steps))

    def __call__(self, step):
        if self.kind == "clamped":
            falls = (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.total - self.warmup))) / 2
            return self.peak * (step / self.warmup if step < self.warmup else max(self.final, falls))
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = min(1.0, (step + 1 - self.warmup) / max(1, self.total - self.warmup))  # 1 at the last step
        if self.kind == "steps":
            return self.peak / 5 ** min(2, 3 * step // self.total)
        if self.kind == "hold":
            held = 0.45 * self.total / max(1, self.total - self.warmup)
            share = (1 - min(1.0, max(0.0, done - held) / (1 - held))) ** 2
        else:
            share = (1 + math.cos(math.pi * done)) / 2
        return self.peak * (self.final + (1 - self.final) * share)


class Average:
    """Exponential moving average of a model's weights and of batch norm's running statistics. The share kept in a step
    is `decay`, less in the first steps: min(decay, (1+n)/(10+n)), as in EfficientNet's code."""

    def __init__(self, model, decay):
        self.decay, self.steps, self.copy = decay, 0, None
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def load(self, weights, steps):
        """Continue from `weights`, the average after `steps` steps."""
        self.weights, self.steps = {k: weights[k].to(v.device) for k, v in self.weights.items()}, steps

    def of(self, model):
        """A model of the same kind with the averaged weights."""
        self.copy = self.copy or copy.deepcopy(model)
        self.copy.load_state_dict(self.weights)
        return self.copy

    @torch.no_grad()
    def update(self, model):
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = model.state_dict()
        floats = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.weights[k] for k in floats], [now[k] for k in floats], 1 - keep)
        for k in now.keys() - set(floats):
            self.weights[k].copy_(now[k])
