"""pyproject.toml, the lock, environment.yml and the Makefile say the same thing."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PLATFORMS = {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock_text(root):
    return (root / "requirements.txt").read_text()


@pytest.fixture(scope="module")
def lock(lock_text):
    """The lock's entries, as (requirement, number of hashes)."""
    lines = [line for line in lock_text.splitlines() if not line.lstrip().startswith("#")]
    entries = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [
        (Requirement(entry.split("--hash")[0]), len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
        for entry in entries
        if entry.strip()
    ]


def machines():
    """The marker values of every Python and platform that the lock serves."""
    for python in PYTHONS:
        for sys_platform, system in PLATFORMS.items():
            yield {
                "python_version": python,
                "python_full_version": python + ".1",
                "extra": "",
                "sys_platform": sys_platform,
                "platform_system": system,
                "os_name": "nt" if system == "Windows" else "posix",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
            }


def disagreements(requirements, lock):
    """Sentences, one for each requirement that the lock does not answer with one pin that fits."""
    found = []
    for requirement in map(Requirement, requirements):
        for machine in machines():
            if requirement.marker and not requirement.marker.evaluate(machine):
                continue
            pins = [
                entry
                for entry, _ in lock
                if canonicalize_name(entry.name) == canonicalize_name(requirement.name)
                and (not entry.marker or entry.marker.evaluate(machine))
            ]
            versions = [next(iter(pin.specifier)).version for pin in pins]
            if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
                found.append(
                    f"{requirement} has {versions or 'no pin'} on {machine['sys_platform']}, "
                    f"Python {machine['python_version']}"
                )
    return found


def extra(project, name):
    """The requirements of an extra, and of the extras that it includes."""
    for requirement in project["optional-dependencies"][name]:
        parsed = Requirement(requirement)
        if parsed.name == project["name"]:
            for included in parsed.extras:
                yield from extra(project, included)
        else:
            yield requirement


def test_lock_answers_every_dependency(project, lock):
    wanted = [*project["dependencies"], *extra(project, "test")]
    assert any(w.startswith("torchvision") for w in wanted) and any(w.startswith("espeakng") for w in wanted)
    assert not disagreements(wanted, lock), "run `make lock`"


def test_disagreements_are_seen():
    lock = [(Requirement("numpy==1.20.0"), 1), (Requirement("tqdm==4.70 ; sys_platform == 'linux'"), 1)]
    assert len(disagreements(["numpy>=1.26"], lock)) == len(PYTHONS) * len(PLATFORMS)
    assert len(disagreements(["tqdm"], lock)) == len(PYTHONS) * 2
    assert len(disagreements(["absent; python_version < '3.11'"], lock)) == len(PLATFORMS)
    assert not disagreements(["NumPy>=1.20", "tqdm; sys_platform == 'linux'"], lock)


def test_lock_pins_exactly_with_hashes(lock):
    assert len(lock) > 50
    for entry, hashes in lock:
        assert [s.operator for s in entry.specifier] == ["=="], f"{entry.name} is not pinned"
        assert Version(next(iter(entry.specifier)).version)
        assert hashes, f"{entry.name} has no hash"


def test_lock_names_no_address(lock, lock_text):
    assert all(entry.url is None for entry, _ in lock)
    assert not re.search(r"://|\bindex-url|find-links|\.(org|com|io|net)\b", lock_text)


def test_cuda_extra_stays_out_of_the_lock(project, lock):
    cuda = {canonicalize_name(Requirement(r).name) for r in project["optional-dependencies"]["cuda"]}
    assert cuda and not cuda & {canonicalize_name(entry.name) for entry, _ in lock}


def test_conda_environment_is_the_same_lock(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = [d for d in environment["dependencies"] if isinstance(d, dict)]
    assert environment["channels"] == ["conda-forge"]
    assert pip == [{"pip": ["-r requirements.txt"]}]
    assert sorted(re.match(r"[\w-]+", d).group() for d in plain) == ["pip", "python"]

    python = SpecifierSet(next(d for d in plain if d.startswith("python")).removeprefix("python").strip())
    supported = SpecifierSet(project["requires-python"])
    minors = [f"3.{minor}.1" for minor in range(6, 30)]
    assert [m.rsplit(".", 1)[0] for m in minors if m in python] == PYTHONS
    assert all(m in supported for m in minors if m in python)


def make(root, *arguments):
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE")}
    return subprocess.run(["make", *arguments], cwd=root, env=clean, capture_output=True, text=True)


def test_help_lists_targets_that_exist(root):
    for arguments in ([], ["help"]):
        listed = re.findall(r"^make ([a-z]+) ", make(root, *arguments).stdout, re.M)
        assert {"help", "env", "repro", "stale", "prove", "lint", "test", "figures", "pages", "lock", "clean"} <= set(
            listed
        )
    for target in listed:
        assert make(root, "--dry-run", target).returncode == 0, f"make {target} is listed and does not exist"
    assert make(root, "--dry-run", "absent").returncode != 0


def test_unknown_profile_ends_in_one_sentence(root):
    run = make(root, "repro", "PROFILE=huge")
    assert run.returncode != 0 and run.stdout == ""
    told = [line for line in run.stderr.splitlines() if not line.startswith("make: ***")]
    names = "quick subset long commands beyond paper scan search rates spot wake_words"
    assert told == [f"error: no profile is called 'huge'; choose one of: {names}"]


def test_every_profile_passes_the_check_before_its_stages(root):
    """One without a params.yaml, which trains nothing, has none."""
    listed = re.search(r"^PROFILES := (.*)", (root / "Makefile").read_text(), re.M)[1].split()
    checked = []
    for name in listed:
        first, *_ = make(root, "--dry-run", "repro", f"PROFILE={name}").stdout.split("dvc repro")
        if "python -m paper.profile" in first:
            arguments = re.search(r"python -m (paper\.profile.*)", first)[1].split()
            run = subprocess.run([sys.executable, "-m", *arguments], cwd=root, capture_output=True, text=True)
            assert (run.returncode, run.stdout, run.stderr) == (0, "", ""), name
            checked.append(arguments[1:])
    parameters = [["params.yaml"], *([f"profiles/{n}/params.yaml"] for n in listed[1:])]
    assert checked == [path for path in parameters if (root / path[0]).exists()]


def test_old_python_is_refused_in_one_sentence(root, tmp_path):
    (tmp_path / "Makefile").write_text((root / "Makefile").read_text())
    for name in ("pyproject.toml", "requirements.txt"):
        (tmp_path / name).touch()
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    run = make(tmp_path, "env", f"PYTHON={old}")
    assert run.returncode != 0 and not (tmp_path / ".venv").exists()
    assert f"error: '{old}' is not Python 3.10 or newer" in run.stderr
