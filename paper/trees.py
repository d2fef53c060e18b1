"""Python with the code of another folder, such as a git worktree of an older commit."""

import os
import subprocess
import sys

from kwslib.io import KwsError


def only(tree):
    """An environment in which Python imports from `tree` first."""
    return os.environ | {"PYTHONPATH": str(tree)}


def run_in(tree, what, *arguments, folder=None, **env):
    """What Python prints that runs `arguments` with the code in the folder `tree`, in `folder` (default: there).

    Raises KwsError, which calls the run `what`, where it fails.
    """
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder or tree, env=only(tree) | env, capture_output=True, text=True)
    if done.returncode:
        raise KwsError(f"{what} failed in {tree}: {done.stderr.strip()[-300:]}")
    return done.stdout
