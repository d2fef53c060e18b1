"""Run one notebook of the pipeline: the only place that calls papermill.

    python -m paper.execute 02_train quick variant=retnet seed=0

runs notebooks/02_train.ipynb with the parameters of a profile and writes
results/quick/notebooks/02_train-retnet-0.ipynb. What differs from run to run although the results do not (time stamps,
progress bars, random cell names) is left out, so that a faithful rerun gives the same file.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from kwslib.io import KwsError, cli, replacing

PER_RUN = ("start_time", "end_time", "duration", "papermill", "execution")


def params_file(profile):
    """The parameter file of a profile, relative to the repository."""
    return "params.yaml" if profile == "quick" else f"profiles/{profile}/params.yaml"


def execute(notebook, profile, parameters, results=None):
    """Run notebooks/<notebook>.ipynb on `profile` with further `parameters`; returns the path of the executed notebook.

    results: the results folder (default results/<profile>). Parameters whose name is not `small`, `out`, `read` or
    `report` become part of the file's name. Raises KwsError where the notebook does not exist or a cell fails; the
    notebook as far as it came is then under tmp/failed.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = Path("notebooks") / f"{notebook}.ipynb"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in Path("notebooks").glob("*.ipynb")))
        raise KwsError(f"notebook {source} does not exist; choose from: {known}")
    name = "-".join([notebook, *(str(parameters[key]) for key in ("variant", "seed") if key in parameters)])
    out = Path(results or f"results/{profile}") / "notebooks" / f"{name}.ipynb"
    failed = Path("tmp/failed") / out.name
    failed.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    known = papermill.inspect_notebook(str(source))
    if "params" in known and not Path(params_file(profile)).is_file():
        raise KwsError(f"profile {profile!r} lacks {params_file(profile)}; choose a folder of profiles/, or quick")
    values = {"params": f"../{params_file(profile)}", **parameters}
    if unknown := [key for key in parameters if key not in known]:
        raise KwsError(f"notebook {source} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    try:
        done = papermill.execute_notebook(
            str(source), str(failed), {k: v for k, v in values.items() if k in known},
            kernel_name="python3", cwd="notebooks", progress_bar=False, log_output=False,
        )  # fmt: skip
    except PapermillExecutionError as e:
        raise KwsError(f"notebook {source} failed: {e.ename}: {e.evalue}; {failed} shows where") from None
    write_clean(done, out)
    failed.unlink()
    return out


def write_clean(notebook, path):
    """Write an executed notebook without what depends on the moment of its execution."""
    import nbformat

    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key not in PER_RUN}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    with replacing(path) as scratch:
        nbformat.write(notebook, scratch)


def parsed(text):
    """`key=value` -> (key, value): True, False, None and numbers as such, all else text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise KwsError(f"{text!r} is no parameter; write name=value")
    words = {"True": True, "False": False, "None": None}
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, words.get(value, value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("notebook", help="name of a notebook, such as 02_train")
    parser.add_argument("profile", help="name of a profile, such as quick")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="further parameters of the notebook")
    parser.add_argument("--results", help="results folder (default results/<profile>)")
    a = parser.parse_args()
    print(execute(a.notebook, a.profile, dict(map(parsed, a.parameters)), a.results))
    return 0


if __name__ == "__main__":
    cli(main)
