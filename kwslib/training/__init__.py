"""Training: a checked recipe (config), the loop that follows it (loop), optimizers and learning rates (optim), how a
killed run continues (resume), one process or several (device), and teachers (distil).

A change here may change every result: `make prove` shows whether it does."""


def __getattr__(name):
    if name == "train":  # on demand: the recipe alone needs no PyTorch
        from kwslib.training.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
