"""The rooms of the repository: imports point one way, files stay short, and importing kwslib changes nothing."""

import ast
import os
import subprocess
import sys

import pytest
from conftest import ROOT

# What is in one layer imports itself and the layers above it in this list, never its neighbours or what comes below.
# Modules of kwslib that are not named, such as the commands, may import everything; nothing named may import them.
LAYERS = (
    {"io", "scan", "card"},
    {"machine", "metrics"},
    {"data", "models"},
    {"checkpoint", "listening"},
    {"training", "spotter"},
    {"evaluation", "export", "wake"},
    {"cli"},
)
DEPTH = {room: depth for depth, layer in enumerate(LAYERS) for room in layer}
KWSLIB = sorted((ROOT / "kwslib").rglob("*.py"))
LONGEST = 350


def imports(path):
    """Every module that a file imports, inside functions too, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            names = [f"kwslib.{name.name}" for name in node.names] if node.module == "kwslib" else [node.module]
            yield from ((name, node.lineno) for name in names)


def room_of(module):
    """ "data" for kwslib.data.folder; "" for kwslib itself; None for what is not in kwslib."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "kwslib" else None


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", KWSLIB, ids=module_of)
def test_imports_point_one_way(path):
    room = room_of(module_of(path))
    for module, line in imports(path):
        other = room_of(module)
        if room in DEPTH and other not in (None, room):
            assert DEPTH.get(other, len(LAYERS)) < DEPTH[room], f"{path}:{line}: {room} must not import {module}"


@pytest.mark.parametrize("path", KWSLIB, ids=module_of)
def test_the_library_imports_no_other_folder(path):
    """paper/ uses the library, never the other way round."""
    others = {p.name for p in ROOT.iterdir() if p.is_dir()} - {"kwslib"}
    for module, line in imports(path):
        assert module.partition(".")[0] not in others, f"{path}:{line} imports {module}"


# The rooms of paper/, and the rooms that each may import. All use the files beside them in paper/; of these, only
# USERS, which gather what the rooms found, or run what is in them, import a room.
PAPER_ROOMS = {"benchmarks": set(), "spotting": {"benchmarks"}, "reports": {"benchmarks", "spotting"}, "torture": set()}
USERS = {"pages", "release", "witness"}
PAPER = sorted((ROOT / "paper").rglob("*.py"))


@pytest.mark.parametrize("path", PAPER, ids=module_of)
def test_the_rooms_of_the_paper_import_one_way(path):
    inside = path.relative_to(ROOT / "paper").parts
    room = inside[0] if len(inside) > 1 else None
    for module, line in imports(path):
        package, *rest = module.split(".")
        if package != "paper" or not rest or rest[0] == room:
            continue
        if room:
            rooms = rest[0] in PAPER_ROOMS
            assert not rooms or rest[0] in PAPER_ROOMS[room], f"{path}:{line}: {room} must not import {module}"
            assert rest[0] not in USERS, f"{path}:{line}: {room} must not import {module}"
        else:
            assert rest[0] not in PAPER_ROOMS or path.stem in USERS, f"{path}:{line} imports {module}"


def test_the_scan_imports_nothing_of_kwslib():
    for path in (ROOT / "kwslib" / "scan").glob("*.py"):
        assert {room_of(module) for module, _ in imports(path)} <= {None, "scan"}, path


def test_the_rooms_named_here_exist():
    there = {room_of(module_of(path)) for path in KWSLIB}
    assert set(DEPTH) <= there, set(DEPTH) - there


def test_no_file_is_long():
    lines = {}
    for folder in ("kwslib", "paper", "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            lines[str(path.relative_to(ROOT))] = len(path.read_text(encoding="utf-8").splitlines())
    assert not (long := {path: n for path, n in lines.items() if n > LONGEST}), long


def run(code, *arguments, **options):
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_kwslib_changes_nothing():
    code = """
import importlib, os, signal, sys
import torch
def state():
    os.umask(mask := os.umask(0o022))
    signals = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    torchs = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().tolist()
    return dict(os.environ), mask, signals, torchs
os.umask(0o027)
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert state() == before, name
"""
    run(code, *(module_of(path) for path in KWSLIB if path.name != "triton.py"), cwd=ROOT)


def test_importing_kwslib_is_light():
    assert run("import sys, kwslib; print('torch' in sys.modules)", cwd=ROOT) == ["False"]


def test_the_scan_can_be_lifted_out(tmp_path):
    """As its docstring says: the folder, copied and its imports renamed, works where there is no kwslib."""
    (tmp_path / "lifted").mkdir()
    for path in (ROOT / "kwslib" / "scan").glob("*.py"):
        text = path.read_text(encoding="utf-8").replace("kwslib.scan", "lifted")
        (tmp_path / "lifted" / path.name).write_text(text, encoding="utf-8")
    code = """
import sys, torch, lifted, lifted.cpu
x, A, B = torch.ones(1, 3, 2), -torch.ones(2, 4), torch.ones(1, 3, 4)
y = lifted.selective_scan(x, x, A, B, B, layout="bld", backend="reference")
print(y.shape[1], "kwslib" in sys.modules)
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    assert run(code, cwd=tmp_path, env=environment) == ["3", "False"]
