"""The pipeline: its files agree, what is stale is said, and its tools say what they found."""

import ast
import json
import re

import pytest
import yaml
from conftest import git

from kwslib.io import KwsError, write_json
from paper import execute, prove, reproduction


@pytest.fixture
def repository(tmp_path):
    """A repository with one committed result of profile `mine`."""
    git(tmp_path, "init", "-q")
    folder = tmp_path / "results/mine"
    for part in ("runs", "history", "timing"):
        (folder / part).mkdir(parents=True)
    write_json(
        folder / "runs/a-0.json", {"model": "a", "test": {"accuracy": 0.9, "n": 200}, "confusion": [[10, 2], [0, 8]]}
    )
    (folder / "history/a-0.csv").write_text("epoch,training_loss\n1,2.5\n2,1.25\n")
    write_json(folder / "timing/a-0.json", {"seconds": 12.5})
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "results")
    return tmp_path


def test_profiles_that_share_the_pipeline_hold_the_same_file(root):
    for profile in ("subset", "long", "commands", "paper"):
        assert (root / f"profiles/{profile}/dvc.yaml").read_text() == (root / "dvc.yaml").read_text(), "make pipelines"


def test_every_stage_depends_on_whole_rooms_and_existing_files(root):
    for path in (root / "dvc.yaml", *sorted(root.glob("profiles/*/dvc.yaml"))):
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            stage = stage.get("do", stage)
            code = [d for d in stage["deps"] if d.startswith(("kwslib", "paper", "notebooks")) and "$" not in d]
            assert code and all((root / d).exists() for d in code), f"{path} {name}"
            for room in ("scan", "models", "data", "training"):
                inside = [d for d in code if d.startswith(f"kwslib/{room}/")]
                alone = (["kwslib/models/registry.py"], ["kwslib/training/config.py"])  # names, and reading YAML
                assert inside in ([], *alone), f"{path} {name} names files of a room: {inside}"


def test_what_parameters_hold_reaches_the_shell_in_quotes(root):
    """But for the options of wake words, which profiles wake_words and tried hold beside their command."""
    for path in (root / "dvc.yaml", *sorted(root.glob("profiles/*/dvc.yaml"))):
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            command = stage.get("do", stage)["cmd"]
            bare = re.findall(r"\$\{.*?\}", re.sub(r"'[^']*'", "", command))
            options = path.parent.name in ("wake_words", "tried") and name == "words"
            assert bare == (["${item}"] if options else []), f"{path} {name}"


DRAWING = "comparisons diagrams facts figure_style figures results statistics tables writing".split()
DRAWING = {f"paper/{name}.py" for name in DRAWING}
COMMANDS = {"kwslib/cli.py"}  # imports what a command needs when it runs: not followed


def imported(text, root):
    """The modules of kwslib and paper that Python code imports, a public name of kwslib counted as its module."""
    stub = ast.parse((root / "kwslib/__init__.pyi").read_text()).body
    public = {a.name: f"kwslib.{n.module}" for n in stub if isinstance(n, ast.ImportFrom) for a in n.names}
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module if node.module != "kwslib" else public.get(a.name, "kwslib") for a in node.names}
            found |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kwslib":
            found.add(public.get(node.attr, "kwslib"))
    return found


def reached(modules, root):
    """The files of kwslib and paper that `modules` import, directly or not."""
    todo, files, seen = set(modules), set(), set()
    while todo:
        module = todo.pop()
        seen.add(module)
        path = root.joinpath(*module.split(".")).with_suffix(".py")
        if module.startswith(("kwslib.", "paper.")) and path.is_file():
            name = path.relative_to(root).as_posix()
            files.add(name)
            if name not in COMMANDS:
                todo |= imported(path.read_text(), root) - seen
    return files


def code_of(notebook):
    cells = [cell["source"] for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    return "\n".join(line.rstrip() for lines in cells for line in lines if not line.startswith("%"))


def test_every_stage_depends_on_all_the_code_that_it_runs(root):
    """But for what only draws into the executed notebook of a training or a benchmark."""
    for path in (root / "dvc.yaml", *sorted(root.glob("profiles/*/dvc.yaml"))):
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            stage = stage.get("do", stage)
            modules = set(re.findall(r"-m ((?:kwslib|paper)[.\w]*)", stage["cmd"]))
            for dependency in stage["deps"]:
                if dependency.startswith("notebooks/"):
                    modules |= imported(code_of(root / dependency), root)
            rooms = tuple(f"{dependency}/" for dependency in stage["deps"])
            missing = {f for f in reached(modules, root) if f not in stage["deps"] and not f.startswith(rooms)}
            assert missing <= DRAWING, f"{path} {name}: {missing - DRAWING}"


def test_what_is_stale_is_said(root):
    """results/stale.txt names the stages whose committed results are of older code: these, and no others."""
    if not (root / ".git").exists():
        pytest.skip("not a clone: no .git")
    if git(root, "status", "--porcelain", "kwslib", "paper", "notebooks"):
        pytest.skip("the code has changes that are not committed; make stale lists what they touch")
    from dvc.repo import Repo

    told = [x for x in (root / "results/stale.txt").read_text().splitlines() if not x.startswith("#")]
    assert sorted(prove.stale(Repo(str(root)))) == sorted(told)


def test_a_faithful_rerun_is_identical_and_timings_do_not_count(repository):
    write_json(repository / "results/mine/timing/a-0.json", {"seconds": 99})
    found = reproduction.compare("mine", repository)
    assert found["counts"] == {"identical": 10, "within tolerance": 0, "different": 0} and found["moved"] == []
    assert "10 numbers in 2 files" in reproduction.report(found)


def test_what_moved_is_named_with_its_distance(repository):
    run = {"model": "a", "test": {"accuracy": 0.88, "n": 100}, "confusion": [[10, 2], [0]]}
    write_json(repository / "results/mine/runs/a-0.json", run)
    found = reproduction.compare("mine", repository)
    assert found["counts"] == {"identical": 7, "within tolerance": 1, "different": 2}
    text = reproduction.report(found)
    assert "test.accuracy: 0.9, now 0.88, by -0.02" in text and "confusion.1.1: 8, absent now" in text
    assert (
        text.index("7 identical") < text.index("test.accuracy")
        and "different: results/mine/runs/a-0.json test.n" in text
    )


def test_a_rerun_on_another_processor_is_said_to_be_one(repository):
    for name, machine in (("a-0", {"cpu": "Abacus", "gpu": None}), ("a-1", {"cpu": "Abacus", "gpu": "Loom"})):
        write_json(repository / f"results/mine/timing/{name}.json", {"seconds": 5, "machine": machine})
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "timings")
    found = reproduction.compare("mine", repository)
    assert found["made_on"] == ["Abacus", "Loom"]
    assert "were made on Abacus and Loom; this is " in reproduction.report(found)
    found["machine"]["cpu"], found["machine"]["gpu"], found["made_on"] = "Abacus", None, ["Abacus"]
    assert "were made on" not in reproduction.report(found)


def test_what_a_rerun_is_compared_with_is_what_the_lock_names(repository):
    """Not its folder: a profile may write elsewhere, and others into its folder. Clocks are not compared."""
    for name, text in (("mine/elsewhere.json", '{"misses": 1, "training_s": 9}'), ("away/a.json", '{"n": 1}')):
        (repository / "results" / name).parent.mkdir(exist_ok=True)
        (repository / "results" / name).write_text(text)
    lock = repository / "profiles/mine/dvc.lock"
    lock.parent.mkdir(parents=True)
    outs = [{"path": path} for path in ("data/mine", "results/mine/elsewhere.json", "results/away")]
    lock.write_text(json.dumps({"schema": "2.0", "stages": {"a": {"outs": outs}, "b": {"cmd": "true"}}}))
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "a lock")
    (repository / "results/away/a.json").write_text('{"n": 2}')
    found = reproduction.compare("mine", repository)
    assert found["counts"] == {"identical": 1, "within tolerance": 0, "different": 1} and found["files"] == 2


def test_a_profile_without_committed_results_is_said_to_have_none(repository):
    assert reproduction.compare("other", repository) is None


def test_execute_refuses_what_the_notebook_lacks(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(KwsError, match="notebooks/07_none.ipynb does not exist"):
        execute.execute("07_none", "tiny", {})
    with pytest.raises(KwsError, match="has no parameter 'colour'"):
        execute.execute("01_data", "tiny", {"colour": 1})
    with pytest.raises(KwsError, match="profile 'huge'"):
        execute.execute("01_data", "huge", {})


def test_a_failing_notebook_leaves_nothing_under_its_final_name(tmp_path, monkeypatch):
    import nbformat

    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params.yaml").write_text("{}")
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            nbformat.v4.new_code_cell("fail = True", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("import sys; print('seen'); print('progress', file=sys.stderr)"),
            nbformat.v4.new_code_cell("if fail: raise ValueError('broken')"),
        ],
    )
    nbformat.write(notebook, tmp_path / "notebooks/01_data.ipynb")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KwsError, match="ValueError: broken; tmp/failed/01_data.ipynb shows where"):
        execute.execute("01_data", "quick", {})
    assert not (tmp_path / "results").exists()
    texts = []
    for _ in range(2):
        done = execute.execute("01_data", "quick", {"fail": False})
        texts.append(done.read_text())
    assert texts[0] == texts[1] and "seen" in texts[0] and texts[0].count("progress") == 1  # the source, not the output


def test_committed_results_are_json(root):
    for path in root.glob("results/*/proofs/*.json"):
        proof = json.loads(path.read_text())
        assert proof["before"] == proof["after"], path
