"""The entries of dvc.lock: which are out of date, which only in words, and how one is renewed."""

from __future__ import annotations

import ast
import json
import shlex
from functools import cache
from pathlib import Path

from kwslib.training.config import parse_yaml, read_yaml


def stale(repo):
    """The addresses of all stages that were run, and whose dependencies, parameters or command are others now."""
    with repo.lock:
        ran = [stage for stage in repo.index.stages if stage.name in locked(stage.path)]
        return [s.addressing for s in ran if s.changed_stage() or s.changed_deps(allow_missing=True)]


@cache
def locked(path):
    """The entries in the lock file beside a dvc.yaml, by stage: those that were run."""
    lock = Path(path).with_suffix(".lock")
    return read_yaml(lock, "lock file", "dvc repro writes it").get("stages") or {} if lock.is_file() else {}


def renew(repo, address):
    """Enter a stage's dependencies, parameters and outputs, as they are now, into its lock file; absent outputs keep
    their entry.
    """
    (stage,) = repo.stage.collect(address)
    with repo.lock:
        stage.save(allow_missing=True, run_cache=False)
        stage.dump(update_pipeline=False)


def only_words_changed(repo, address, tree, but=()):
    """Whether a stage computes what it computed with the code in the folder `tree`, the checkout of an older commit.

    Its command may be written in other quotes, and its files in other words (see `same_code`); the lock must hold the
    hashes of the files in `tree`. This needs no run: the difference in git is the proof. but: files that may hold other
    code, in a folder that the stage depends on.
    """
    from dvc.dependency import ParamsDependency

    (stage,) = repo.stage.collect(address)
    if shlex.split(locked(stage.path)[stage.name]["cmd"]) != shlex.split(stage.cmd):
        return False
    with repo.lock:
        states = {dep: dep.workspace_status() for dep in stage.deps}
    changed = [dep for dep, state in states.items() if state and state != {str(dep): "deleted"}]
    if not changed:
        return True
    if any(isinstance(dep, ParamsDependency) for dep in changed):
        return False
    if not (before := stages_of(str(tree)).get((stage.path_in_repo, stage.name))):  # younger than that commit
        return False
    old = {dep.def_path: dep for dep in before.deps if dep.exists}
    return all(
        dep.def_path in old
        and old[dep.def_path].get_hash() == dep.hash_info
        and same_code(Path(old[dep.def_path].fs_path), Path(dep.fs_path), within(dep.def_path, but))
        for dep in changed
    )


@cache
def stages_of(root):
    """(path of its dvc.yaml, name) -> stage, of all stages of a checkout."""
    from dvc.repo import Repo

    return {(stage.path_in_repo, stage.name): stage for stage in Repo(root).index.stages}


def within(folder, paths):
    """The names in a folder of those of the paths that are in it."""
    return {Path(p).relative_to(folder) for p in paths if Path(folder) in Path(p).parents}


def same_code(before, after, but=frozenset()):
    """Whether two files, or two folders of files, hold the same code: Python but for its words (see `code_of`),
    notebooks but for their Markdown, YAML but for its comments. All other files must be equal. The names `but` are not
    looked into.
    """
    names, readers = files_of(before), {".py": code_of, ".ipynb": cells_of, ".yaml": values_of}

    def read(path):
        return readers.get(path.suffix, lambda source: source)(path.read_bytes())

    return names == files_of(after) and all(read(before / name) == read(after / name) for name in names - but)


def files_of(path):
    """The names of the files in a folder, or of the file itself ("."), without what Python compiled."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return {p.relative_to(path) for p in paths if p.is_file() and "__pycache__" not in p.parts}


def cells_of(source):
    """All that runs of a notebook: the source and the tags of its code cells, in turn."""
    cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["metadata"].get("tags")) for cell in cells]


def values_of(source):
    """What a YAML file says."""
    return parse_yaml(source.decode())


def code_of(source):
    """The syntax tree of Python source as text: without comments, docstrings, layout and the texts in `raise`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body[0].value = ast.Constant("")
        if isinstance(node, ast.Raise):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    part.value = ""
    return ast.dump(tree)
