"""What README and docs show works: Python blocks run, commands parse, blueprints plan, named files exist."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

import zoogen
from zoogen.cli.main import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPERATORS = set("();<>|&") | {"&&", "||", ">>", "2>"}


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


# --- Python ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder in which ``zoos/quickstart`` holds a few of the quickstart's models, as its first seconds leave it."""
    from zoogen.build.pipeline import BuildOptions, build
    from zoogen.schedule import SerialExecutor, StopFlag

    class Silent:
        def begin(self, *_): ...

        def progress(self, *_): ...

        def note(self, *_): ...

    folder = tmp_path_factory.mktemp("home")
    where = "lr == 0.01 and seed in [0, 1] and name == 'adam' and activation in ['tanh', 'relu']"
    options = BuildOptions(
        ROOT / "blueprints/quickstart.yaml",
        folder / "zoos/quickstart",
        where=where.replace("name", "training.optimizer.name"),
    )
    outcome = build(options, SerialExecutor(), Silent(), StopFlag())
    assert (outcome.trained, outcome.open) == (4, 68)
    return folder


@pytest.mark.parametrize("page", [README, DOCS / "first-zoo.md"], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, quickstart, monkeypatch, capsys):
    monkeypatch.chdir(quickstart)
    names: dict = {}
    found = blocks(page, "python")
    assert found
    for number, code in enumerate(found, start=1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)
    assert "test_acc" in capsys.readouterr().out
    width = names["zoo"].layout(names["zoo"].architecture(names["zoo"].models.architecture_id[0])["layout"]).parameters
    assert names["weights"].shape[1] == width == 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
    assert len(names["weights"]) > 0
    assert sum(t.numel() for t in names["tensors"].values()) == width
    assert not names["network"].training


def test_the_readme_keeps_its_ten_lines_and_one_screen():
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert len(README.read_text().splitlines()) <= 70


# --- commands --------------------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """Arguments of every ``zoogen`` call in shell text, quoted shell text included."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for at, word in enumerate(words):
            if " " in word and "zoogen " in word:
                found += commands(word)
            elif word == "zoogen" or word.endswith("/zoogen"):
                rest = words[at + 1 :]
                end = next((i for i, w in enumerate(rest) if set(w) <= set("();<>|&")), len(rest))
                found.append(rest[:end])
    return found


def subcommand(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, f"there is no command zoogen {name}"
    return found


@each_page
def test_commands_in_shell_blocks_have_existing_options_and_all_arguments(page):
    for text in blocks(page, "sh", "bash"):
        for name, *arguments in commands(text):
            subcommand(name).make_context(name, list(arguments))  # raises click's error for what does not parse


@each_page
def test_commands_in_running_text_have_existing_options(page):
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for text in re.findall(r"`zoogen ([a-z][^`]*)`", prose):
        name, *arguments = shlex.split(text)
        command = subcommand(name)
        command.make_parser(click.Context(command)).parse_args(arguments)


@each_page
def test_make_targets_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"`make ([a-z-]+)", text)
    shown += [t for block in blocks(page, "sh") for t in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)]
    assert set(shown) <= set(targets)


def test_the_command_page_lists_every_command():
    text = (DOCS / "commands.md").read_text()
    listed = re.findall(r"^\| `zoogen ([a-z]+)", text, re.MULTILINE)
    assert listed == cli.list_commands(click.Context(cli))


@pytest.mark.parametrize("number", range(len(blocks(DOCS / "cluster.md", "bash"))))
def test_cluster_scripts_are_valid_bash(number):
    script = blocks(DOCS / "cluster.md", "bash")[number]
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_batch_script_passes_on_the_exit_code_of_a_build_that_was_told_to_stop(tmp_path):
    """The part from ``trap`` on, with a stand-in for the build that takes a second to stop."""
    script = next(s for s in blocks(DOCS / "cluster.md", "bash") if "#SBATCH" in s)
    tail = script[script.index("build=$!") :]
    build = "(trap 'sleep 1; exit 3' TERM; touch started; while :; do sleep 0.1; done) &\n"
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > requeued\n')
    (tmp_path / "scontrol").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "-c", build + tail], cwd=tmp_path, env=environment)
    try:
        for _ in range(200):
            if (tmp_path / "started").exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                job.wait(0.05)
        job.terminate()
        assert job.wait(20) == 3
    finally:
        job.kill()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


# --- blueprints ------------------------------------------------------------------------------------------------------

GUIDE = blocks(DOCS / "blueprint.md", "yaml")


def overlaid(base, change):
    """``change`` over ``base``; seeds and value forms are replaced as a whole."""
    forms = {"grid", "draw", "by"}
    if not isinstance(base, dict) or not isinstance(change, dict) or forms & {*base, *change}:
        return change
    return {**base, **{k: overlaid(base[k], v) if k in base and k != "seeds" else v for k, v in change.items()}}


@pytest.mark.parametrize("number", range(len(GUIDE)))
def test_an_example_of_the_guide_gives_the_models_it_says(number, tmp_path):
    from zoogen.blueprint import load
    from zoogen.plan import make_plan

    file = tmp_path / "example.yaml"
    file.write_text(yaml.safe_dump(overlaid(yaml.safe_load(GUIDE[0]), yaml.safe_load(GUIDE[number]))))
    models, states = re.match(r"# (\d+) models?(?:, (\d+) states)?\n", GUIDE[number]).groups()
    summary = make_plan(load(file, ())).summary
    assert summary.models == int(models)
    assert states is None or summary.states == int(states)


def test_the_cluster_example_is_what_ray_up_accepts():
    import jsonschema

    spec = importlib.util.find_spec("ray")  # found, not imported
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    (example,) = (b for b in blocks(DOCS / "cluster.md", "yaml") if b.startswith("cluster_name"))
    jsonschema.validate(yaml.safe_load(example), schema)


# --- extending -------------------------------------------------------------------------------------------------------

OWN_ZOO = """\
zoo: own
version: 1
task: {name: spirals, arms: 3}
architecture: {name: bottleneck, units: {grid: [4, 32]}}
training: {epochs: 10, batch_size: 20, optimizer: {name: adam, lr: 3.0e-2}}
seeds: {list: [0]}
"""
BUILD_AND_OPEN = """
import sys, zoogen
from zoogen.cli import main
sys.argv = ["zoogen", "build", "own.yaml", "--out", "zoo", "--executor", "serial"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
zoo = zoogen.open("zoo")
best = zoo.models.sort_values("test_acc").iloc[-1]
print(best["architecture.units"], best["test_acc"], zoo.module(best.model_id))
"""


@pytest.fixture
def own_package(tmp_path):
    """What the guide writes, as an installed package is seen: a folder on the path with metadata beside it."""
    architecture, task, source = blocks(DOCS / "extending.md", "python")
    (entry_points,) = blocks(DOCS / "extending.md", "toml")
    package, metadata = tmp_path / "my_package", tmp_path / "my_package-1.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").touch()
    (package / "bottleneck.py").write_text(architecture)
    (package / "spirals.py").write_text(task)
    (package / "json_vectors.py").write_text(source)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    ini = re.sub(r'\[project\.entry-points\."(.+?)"\]', r"[\1]", entry_points).replace('"', "")
    (metadata / "entry_points.txt").write_text(ini)

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "ZOOGEN_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_architecture_and_the_task_of_the_guide_train_from_a_package_with_entry_points(own_package, tmp_path):
    (tmp_path / "own.yaml").write_text(OWN_ZOO)
    told = own_package("-c", BUILD_AND_OPEN)
    assert "Linear(in_features=2, out_features=32, bias=True)" in told
    # A third of the points lie on each arm: a network that learns is well above chance.
    assert float(told.split("\n")[1].split()[1]) > 0.45


def test_the_source_of_the_guide_is_recognised_and_imported_from_a_package_with_entry_points(own_package, tmp_path):
    (tmp_path / "vectors").mkdir()
    told = {"lr": 0.1, "weights": {"0": [1.0, 2.0], "5": [0.5, -0.25]}, "test_acc": {"0": 0.125, "5": 0.75}}
    for name in ("a", "b"):
        (tmp_path / f"vectors/{name}.weights.json").write_text(json.dumps(told))
    (tmp_path / "vectors/c.weights.json").write_text("{}")
    printed = own_package("-m", "zoogen", "import", "vectors", "--out", "zoo")
    assert "2 models, 4 states" in printed
    assert "1 model: is no record of weights" in printed
    zoo = zoogen.open(tmp_path / "zoo")
    last = zoo.select(epochs="last", lr=0.1)
    assert last.weights().tolist() == [[0.5, -0.25]] * 2
    assert last.checkpoints["test_acc"].tolist() == [0.75] * 2


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_tree_of_the_readme_is_the_tree_of_the_repository():
    tree = next(t for t in README.read_text().split("```") if t.startswith("\nzoogen/"))
    shown = [line.split()[0] for line in tree.strip().splitlines()]
    assert all((ROOT / place).is_dir() for place in shown)
    rooms = {f"zoogen/{p.name}/" for p in (ROOT / "zoogen").iterdir() if (p / "__init__.py").is_file()}
    assert {place for place in shown if place.startswith("zoogen/")} == rooms


@each_page
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r"\{literalinclude\} (\S+)", text):
        assert (page.parent / target).exists(), target


@each_page
def test_repository_paths_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    for place in re.findall(r"\b(?:zoogen|blueprints|tests|docs)/[\w./-]*\w", text):
        if not place.startswith("docs/_build") and "zoogen/data" not in place:
            assert (ROOT / place).exists(), place
