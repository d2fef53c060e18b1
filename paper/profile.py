"""One profile of experiments: what its params.yaml asks for, and where its files are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from kwslib.io import KwsError, cli
from kwslib.training.config import RECIPES, load_config, read_yaml

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # these reach a shell, through the commands of dvc.yaml


class Profile:
    """What one `params.yaml` asks for, and where its files are: the one place that knows the paths.

    path: the parameter file. root: the repository's folder. Keys: profile, corpus {source, options}, task, variants,
    seeds, again (more runs of some variants, name: {variant, seed}), common (overrides of every recipe), each
    (overrides of some, by variant), train (overrides that win over both; null: none), benchmark (options of the
    benchmark), and for a search trials, and taught, the trials that need other runs' checkpoints (paper.search). The
    profile `tiny`, which the tests run, keeps everything under tmp/.
    """

    KEYS = {
        "profile": str,
        "root": str,
        "params": str,
        "corpus": dict,
        "task": (str, list),
        "variants": list,
        "seeds": list,
        "again": dict,
        "common": dict,
        "each": dict,
        "train": dict,
        "benchmark": dict,
        "trials": dict,
        "taught": dict,
    }

    def __init__(self, path, root="."):
        values = read_yaml(path, "parameter file", "the profiles are params.yaml and profiles/")
        values = {"again": {}, "common": {}, "each": {}, "train": {}, "trials": {}, "taught": {}, **values}
        for key, kind in self.KEYS.items():
            if not isinstance(values.get(key), kind):
                raise KwsError(
                    f"parameter file {path}: key {key} is {values.get(key)!r}, which is missing or of the wrong type"
                )
        for key in ("profile", "variants", "seeds", "trials", "taught"):
            held = values[key]
            for name in [held] if isinstance(held, str) else held:
                if name is None or not NAME.fullmatch(str(name)):
                    remedy = "names are letters, digits and _.-, and do not begin with . or -"
                    raise KwsError(f"parameter file {path}: key {key} holds {name!r}; {remedy}")
        if unknown := set(values) - set(self.KEYS):
            raise KwsError(f"parameter file {path} has an unknown key {sorted(unknown)[0]!r}")
        self.__dict__.update({k: values[k] for k in self.KEYS if k not in ("root", "params")})
        self.root = Path(root)
        home = self.root / "tmp" if self.profile == "tiny" else self.root
        if "only" in (options := self.corpus.get("options") or {}):  # a manifest, relative to the repository
            self.corpus = {**self.corpus, "options": {**options, "only": self.root / options["only"]}}
        self.data = home / "data" / self.profile
        self.results = home / "results" / self.profile
        self.figures = home / "figures" / self.profile
        self.checkpoints = home / "checkpoints" / self.profile

    def checkpoint(self, variant, seed):
        """Folder of one run's checkpoint."""
        return self.checkpoints / f"{variant}-{seed}"

    def config(self, variant, seed, **overrides):
        """The recipe of `variant` (kwslib/recipes/<variant>.yaml) under this profile."""
        overrides = {
            **self.common,
            **self.each.get(variant, {}),
            **{key: value for key, value in self.train.items() if value is not None},
            "corpus": self.data,
            "task": self.task,
            "seed": seed,
            "out": self.checkpoint(variant, seed),
            **overrides,
        }
        return load_config(RECIPES / f"{variant}.yaml", **overrides)

    def corpus_path(self):
        """The corpus's source as `kwslib.pack` takes it: a name, or a path relative to the repository."""
        source = self.corpus["source"]
        return source if source in ("synthetic", "speech_commands") else self.root / source


if __name__ == "__main__":  # check parameter files before dvc reads them
    cli(lambda: [Profile(path) for path in sys.argv[1:]] and None)
