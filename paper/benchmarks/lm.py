"""Whole language models on a processor: Hugging Face's Mamba as it is, with mambapy's parallel scan, and on kwslib's.

    python -m paper.benchmarks.lm --out results/scan/lm.json      (a quarter of an hour; --small: seconds)

    training  one step: forward, backward, AdamW
    prompt    logits of a prompt, without gradients

The models are transformers' MambaForCausalLM with random weights, so nothing is downloaded. Every round times each
variant once, in turn: what disturbs the machine disturbs them all. Reported are medians and quartiles over the rounds,
and how far the logits are from the untouched model's. mambapy is optional (`make peers`); transformers is not
(kwslib[transformers]).
"""

import argparse
import contextlib
from importlib import metadata, util
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kwslib.io import KwsError, cli, write_json
from kwslib.machine import keep_memory, machine
from kwslib.models.cost import count_parameters
from kwslib.scan import patch_transformers
from paper.benchmarks.timing import stopwatch, watch_load
from paper.results import timed_on
from paper.writing import captioned, significant, write_text

CPU = torch.device("cpu")
# name: transformers' configuration; tokens (batch, length) of a training step, and of a prompt
MODELS = {
    "0.7M": ({"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 2000}, (8, 128), (1, 512)),
    "130M": ({"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}, (1, 128), (1, 512)),
}
SMALL = {"tiny": ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100}, (2, 16), (1, 32))}
# name: does transformers use mambapy's scan? is the model on kwslib's?
VARIANTS = {"transformers": (False, False), "mambapy": (True, False), "kwslib": (False, True)}
NAMES = {"transformers": "untouched", "mambapy": "mambapy's", "kwslib": "kwslib's"}


@contextlib.contextmanager
def as_variant(model, name):
    """The model computes as VARIANTS says, inside."""
    mambapy, ours = VARIANTS[name]
    for layer in model.backbone.layers:
        layer.mixer.use_mambapy = mambapy
    with patch_transformers() if ours else contextlib.nullcontext():
        yield


def model_of(config):
    """A MambaForCausalLM with random weights. Raises KwsError without transformers."""
    try:
        from transformers import MambaConfig, MambaForCausalLM
        from transformers.utils.logging import set_verbosity_error
    except ImportError as e:
        raise KwsError("transformers is not installed; install kwslib[transformers]") from e
    set_verbosity_error()  # it says of each function that a CUDA kernel would be faster
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**config, eos_token_id=None))


def tokens(config, shape):
    return torch.randint(config["vocab_size"], shape, generator=torch.Generator().manual_seed(0))


def training_run(model, x):
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run():
        optimiser.zero_grad()
        model.train()(x, labels=x).loss.backward()
        optimiser.step()

    return run


def prompt_run(model, x):
    @torch.no_grad()
    def run():
        return model.eval()(x).logits

    return run


def interleaved(model, run, names, rounds):
    """{variant: {median, q1, q3}} in milliseconds, of `rounds` runs each after one that warms up."""
    took = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            with as_variant(model, name):
                took[name].append(stopwatch(run, CPU))
    return {
        name: dict(zip(("q1", "median", "q3"), np.percentile(ms[1:], (25, 50, 75)).tolist()))
        for name, ms in took.items()
    }


def differences(model, x, names):
    """Largest difference of each variant's logits from the untouched model's, over the largest of these."""
    logits = {}
    for name in names:
        with as_variant(model, name):
            logits[name] = prompt_run(model, x)()
    exact = logits.pop("transformers")
    return {name: float((y - exact).abs().max() / exact.abs().max()) for name, y in logits.items()}


def benchmark_lm(out=None, small=False, rounds=7, show=None):
    """lm.json's content, also written to `out`. small: in seconds, to see that it works; show(line): progress."""
    if rounds < 1:
        raise KwsError(f"rounds is {rounds}; it must be at least 1")
    keep_memory()
    names = [name for name in VARIANTS if name != "mambapy" or util.find_spec("mambapy")]
    packages = ["transformers", *(name for name in names if name == "mambapy")]
    found = {"machine": machine(), "rounds": rounds, "models": {}}
    with watch_load() as mark:
        for name, (config, training, prompt) in (SMALL if small else MODELS).items():
            model, x, asked = model_of(config), tokens(config, training), tokens(config, prompt)
            entry = {
                "parameters": count_parameters(model),
                "config": config,
                "difference": differences(model, x, names),
            }
            for task, shape, run in (
                ("prompt", prompt, prompt_run(model, asked)),
                ("training", training, training_run(model, x)),
            ):
                entry[task] = {"batch": shape[0], "length": shape[1], "ms": interleaved(model, run, names, rounds)}
                if show:
                    show(f"{name}, {task} of {shape[0]} x {shape[1]} tokens: {said(entry[task]['ms'])}")
            found["models"][name] = entry
    found |= mark
    found["versions"] = {package: metadata.version(package) for package in packages}
    if out:
        write_json(out, found)
        write_text(Path(out).with_suffix(".md"), captioned(table(found), caption(found)))
    return found


def table(found):
    """The result as a DataFrame of text: a line for each model, task and variant."""
    return pd.DataFrame(
        {
            "Parameters": f"{entry['parameters'] / 1e6:.1f} M",
            "Task": f"{task}, {entry[task]['batch']} × {entry[task]['length']} tokens",
            "Scan": NAMES[name],
            "ms": "{} [{}–{}]".format(*(significant(ms[key]) for key in ("median", "q1", "q3"))),
            "Times untouched": f"{entry[task]['ms']['transformers']['median'] / ms['median']:.1f}",
            "Largest difference": f"{entry['difference'][name]:.0e}" if name in entry["difference"] else "–",
        }
        for entry in found["models"].values()
        for task in ("training", "prompt")
        for name, ms in entry[task]["ms"].items()
    )


def caption(found):
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    return (
        f"transformers' MambaForCausalLM with random weights: a training step and a prompt. Medians and quartiles of "
        f"{found['rounds']} rounds in turns; difference: of a logit from the untouched model's, over the largest. "
        f"{versions}. {timed_on(found)}"
    )


def said(ms):
    own = ms["kwslib"]["median"]
    return ", ".join(
        f"{name} {t['median']:.3g} ms ({t['q1']:.3g} to {t['q3']:.3g}; {t['median'] / own:.1f}x)"
        for name, t in ms.items()
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the first (default 7)")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works")
    a = parser.parse_args(argv)
    benchmark_lm(a.out, a.small, a.rounds, lambda line: print(line, flush=True))


if __name__ == "__main__":
    cli(main)
