"""Every mistake is named at its place: ``@@`` in a text marks where the problem must point to."""

from __future__ import annotations

import pytest

from zoogen.blueprint import BlueprintError, loads

MISTAKES = {
    "unknown top-level key": ({"@@axis": "{}"}, "unknown key 'axis'", "Did you mean 'axes'?"),
    "unknown key of training": (
        {"training": "{@@epoch: 5, epochs: 5, batch_size: 1, optimizer: {name: test-plain, lr: 1}}"},
        "unknown key 'epoch' in training",
        "Did you mean 'epochs'?",
    ),
    "unknown key of an architecture": (
        {"architecture": "{name: test-net, @@widht: 3}"},
        "unknown key 'widht' for architecture 'test-net'",
        "Did you mean 'width'?",
    ),
    "unknown key of seeds": ({"seeds": "{range: [0, 1], @@inti: 3}"}, "unknown key 'inti' in seeds", "'init'"),
    "unknown key of axes": ({"axes": "{@@loud: zoo}"}, "unknown key 'loud' in axes", "'load'"),
    "unknown key of model_split": ({"model_split": "{@@trian: 0.7}"}, "unknown key 'trian'", "'train'"),
    "unknown key of checkpoints": ({"checkpoints": "{@@evry: 1}"}, "unknown key 'evry'", "'every'"),
    "unknown key of resources": ({"resources": "{@@gpu: 1}"}, "unknown key 'gpu'", "'gpus'"),
    "unknown key of a grid": (
        {"architecture": "{name: test-net, width: {grid: [1], @@drow: 2}}"},
        "unknown key 'drow' in a grid",
        "known: grid",
    ),
    "unknown architecture": ({"architecture": "{name: @@test-nett}"}, "unknown architecture 'test-nett'", "'test-net'"),
    "unknown value of a list of names": (
        {"architecture": "{name: test-net, act: @@rleu}"},
        "unknown act 'rleu' for architecture 'test-net'",
        "known: relu, tanh. Did you mean 'relu'?",
    ),
    "factor that the architecture ignores": (
        {"architecture": "{name: test-net, @@kernel: {grid: [3, 5]}}"},
        "a factor that the architecture ignores",
        "known: act, hidden, rate, title, width",
    ),
    "missing name": ({"@@architecture": "{width: 3}"}, "missing key 'name' in architecture", "test-net"),
    "missing key of an entry": (
        {"@@architecture": "{name: test-needy}"},
        "missing key 'depth' for architecture 'test-needy'",
        "a whole number",
    ),
    "missing key of training": (
        {"@@training": "{epochs: 5, optimizer: {name: test-plain, lr: 1}}"},
        "missing key 'batch_size' in training",
        "a whole number >= 1",
    ),
    "no mapping": ({"architecture": "@@test-net"}, "architecture must be a mapping, got 'test-net'", "{name: ...}"),
    "section as a grid": (
        {"architecture": "@@{grid: [{name: test-net}]}"},
        "architecture as a whole cannot be a grid",
        "coupled",
    ),
    "text for a number": (
        {"architecture": "{name: test-net, width: @@many}"},
        "width for architecture 'test-net' must be a whole number >= 1, got 'many'",
        "",
    ),
    "quoted number": ({"architecture": "{name: test-net, width: @@'3'}"}, "must be a whole number", "write 3"),
    "1e-3 is text in YAML 1.1": (
        {"architecture": "{name: test-net, rate: @@1e-3}"},
        "must be a number >= 0 and < 1, got '1e-3'",
        "YAML 1.1 reads 1e-3 as text; write 1.0e-3",
    ),
    "no is false in YAML 1.1": (
        {"architecture": "{name: test-net, title: @@no}"},
        "must be text or null, got no",
        'YAML 1.1 reads no as false; for text quote it: "no"',
    ),
    "off as a name": ({"architecture": "{name: @@off}"}, "name must be text, got off", '"off"'),
    "true for a number": ({"architecture": "{name: test-net, width: @@true}"}, "a whole number >= 1, got true", ""),
    "a fraction for a whole number": (
        {"architecture": "{name: test-net, width: @@3.0}"},
        "a whole number >= 1, got 3.0",
        "write 3 for a whole number",
    ),
    "out of range": ({"architecture": "{name: test-net, rate: @@1.0}"}, ">= 0 and < 1, got 1.0", ""),
    "null": ({"architecture": "{name: test-net, width: @@null}"}, "got nothing", "or remove the key"),
    "a list for one value": (
        {"architecture": "{name: test-net, width: @@[3, 4]}"},
        "must be a whole number >= 1, got a list",
        "write {grid: [3, 4, ...]}",
    ),
    "an item of a list": (
        {"architecture": "{name: test-net, hidden: [3, @@0]}"},
        "hidden for architecture 'test-net' must be a list (each a whole number >= 1), but this item is 0",
        "",
    ),
    "one value of a grid": ({"architecture": "{name: test-net, width: {grid: [3, @@x]}}"}, "got 'x'", ""),
    "misspelt form": (
        {"architecture": "{name: test-net, width: @@{gird: [3]}}"},
        "got a mapping",
        "Did you mean 'grid'?",
    ),
    "empty grid": ({"architecture": "{name: test-net, width: {grid: @@[]}}"}, "the grid is empty", ""),
    "grid without a list": ({"architecture": "{name: test-net, width: {grid: @@3}}"}, "a grid needs a list", ""),
    "grid of grids": (
        {"architecture": "{name: test-net, width: {grid: [1, @@{grid: [2]}]}}"},
        "a grid lists plain values",
        "coupled",
    ),
    "equal values": ({"architecture": "{name: test-net, width: {grid: [1, 2, @@1]}}"}, "1 stands twice", ""),
    "equal values once typed": ({"architecture": "{name: test-net, rate: {grid: [0, @@0.0]}}"}, "0.0 stands twice", ""),
    "equal values of a name": ({"architecture": "{name: {grid: [test-net, @@test-net]}}"}, "stands twice", ""),
    "the entry's own check": (
        {"architecture": "{name: test-net, width: @@13}"},
        "width 13 is unlucky",
        "take 12",
    ),
    "the entry's own check of a grid value": (
        {"architecture": "{name: test-net, width: {grid: [12, @@13]}}"},
        "width 13 is unlucky",
        "take 12",
    ),
    "the task's own check": ({"task": "{name: test-data, val: @@100}"}, "val: 100 leaves no samples", "lower val"),
    "by an unknown key": (
        {"architecture": "{name: test-net, width: {by: @@training.batchsize, cases: {10: 3}}}"},
        "depends on 'training.batchsize', which is not set here",
        "Did you mean 'training.batch_size'?",
    ),
    "by a key of resources": (
        {"resources": "{cpus: 1, gpus: {by: @@resources.cpus, cases: {1: 2}}}"},
        "which nothing can depend on",
        "known: architecture.name",
    ),
    "by in a circle": (
        {
            "architecture": "{name: test-net, width: {by: architecture.rate, cases: {0.0: 3}}, "
            "rate: {by: @@architecture.width, cases: {3: 0.0}}}"
        },
        "in a circle: architecture.width -> architecture.rate -> architecture.width",
        "",
    ),
    "by itself": (
        {"architecture": "{name: test-net, width: {by: @@architecture.width, cases: {1: 2}}}"},
        "in a circle: architecture.width -> architecture.width",
        "",
    ),
    "by without cases": (
        {"architecture": "{name: test-net, width: @@{by: architecture.name}}"},
        "'by' needs cases",
        "",
    ),
    "case that nothing matches": (
        {"architecture": "{name: test-net, width: {by: training.epochs, cases: {5: 1, @@50: 2}}}"},
        "the case 50 matches no value of training.epochs",
        "known: 5",
    ),
    "drawn name": (
        {"architecture": "{name: @@{draw: {choice: [test-net]}}}", "draws": "1"},
        "architecture.name cannot be drawn",
        "use a grid",
    ),
    "draw of an unknown kind": (
        {"architecture": "{name: test-net, rate: {draw: {@@unifrom: [0, 0.5]}}}", "draws": "2"},
        "unknown kind of draw 'unifrom'",
        "Did you mean 'uniform'?",
    ),
    "draw with one bound": (
        {"architecture": "{name: test-net, rate: {draw: {uniform: @@[0]}}}", "draws": "2"},
        "uniform needs two bounds",
        "",
    ),
    "draw of nothing": (
        {"architecture": "{name: test-net, rate: {draw: {uniform: [@@0.5, 0.5]}}}", "draws": "2"},
        "uniform needs low < high",
        "",
    ),
    "logarithm of zero": (
        {"architecture": "{name: test-net, rate: {draw: {log_uniform: [@@0, 0.5]}}}", "draws": "2"},
        "log_uniform needs bounds above 0",
        "",
    ),
    "draw beyond the field's range": (
        {"architecture": "{name: test-net, rate: {draw: {uniform: [0, @@1]}}}", "draws": "2"},
        "may be drawn as 1",
        "",
    ),
    "fractions for a whole number": (
        {"architecture": "{name: test-net, width: {draw: {uniform: [@@1, 9]}}}", "draws": "2"},
        "must be a whole number >= 1, but may be drawn as 1",
        "",
    ),
    "draw without draws": (
        {"architecture": "{name: test-net, @@rate: {draw: {uniform: [0, 0.5]}}}"},
        "'draws' does not say how often",
        "draws: 20",
    ),
    "draws without a draw": ({"@@draws": "3"}, "'draws' is given, but no value is drawn", ""),
    "more draws than values": (
        {"architecture": "{name: test-net, width: {draw: {integers: [1, 4]}}}", "@@draws": "4"},
        "4 different draws are wanted, but there are only 3",
        "",
    ),
    "no seeds": ({"@@seeds": "{init: 3}"}, "seeds needs one of range, list, draw", "{range: [0, 3]}"),
    "two seed policies": ({"@@seeds": "{range: [0, 3], list: [1]}"}, "range and list", ""),
    "empty range of seeds": ({"seeds": "{range: @@[3, 3]}"}, "the range [3, 3] of seeds is empty", "[3, 4]"),
    "empty list of seeds": ({"seeds": "{list: @@[]}"}, "the list of seeds is empty", ""),
    "a seed twice": ({"seeds": "{list: @@[3, 4, 3]}"}, "the seed 3 stands twice", ""),
    "negative seed": ({"seeds": "{list: [@@-1]}"}, "this item is -1", ""),
    "more seeds than there are": ({"seeds": "{draw: @@11, below: 10}"}, "cannot draw 11 different seeds below 10", ""),
    "draw without below": ({"@@seeds": "{draw: 3}"}, "draw and below belong together", ""),
    "a number too long": ({"seeds": "{list: [@@9223372036854775808]}"}, "does not fit in 63 bits", ""),
    "not a number": ({"architecture": "{name: test-net, rate: @@.nan}"}, ".nan is not finite", ""),
    "infinity": ({"architecture": "{name: test-net, rate: @@1.0e+999}"}, "1.0e+999 is not finite", ""),
    "octal": ({"architecture": "{name: test-net, width: @@010}"}, "010 has a leading zero", "write 10"),
    "base 60": ({"architecture": "{name: test-net, title: @@1:30}"}, "a base-60 number", '"1:30"'),
    "a tag": ({"zoo": "@@!!python/name:os.system x"}, "is not allowed in a blueprint", ""),
    "shares of models": (
        {"@@model_split": "{train: 0.5, val: 0.2, test: 0.2}"},
        "do not sum to 1: 0.5 + 0.2 + 0.2",
        "",
    ),
    "axis that is no factor": (
        {"axes": "{load: @@architecture.width}", "architecture": "{name: test-net, rate: {grid: [0.1, 0.2]}}"},
        "the load axis 'architecture.width' is no factor",
        "known: architecture.rate",
    ),
    "checkpoint that is never reached": (
        {"checkpoints": "{epochs: [0, 5, @@6]}"},
        "checkpoint epoch 6 lies beyond the training's 5 epochs",
        "",
    ),
    "no checkpoint at all": (
        {
            "@@checkpoints": "{epochs: [9]}",
            "training": "{epochs: {grid: [5, 9]}, batch_size: 1, optimizer: {name: test-plain, lr: 1}}",
        },
        "no checkpoint would be stored of a training of 5 epochs",
        "",
    ),
    "grid in checkpoints": ({"checkpoints": "{every: @@{grid: [1, 2]}}"}, "checkpoints.every cannot vary", "{by: key"),
    "grid in resources": ({"resources": "{cpus: @@{grid: [1, 2]}}"}, "resources.cpus cannot vary", "{by: key"),
    "name of the zoo": ({"zoo": "@@My Zoo"}, "zoo must be text", ""),
    "version": ({"version": "@@0"}, "version must be a whole number >= 1, got 0", ""),
    "coupled without lists": ({"coupled": "{opt: @@{training: {epochs: 3}}}"}, "needs a list of partial", ""),
    "coupled entry with a foreign key": (
        {"coupled": "{opt: [{@@zoo: x}]}"},
        "unknown key 'zoo' in a coupled entry",
        "",
    ),
    "coupled seeds": ({"coupled": "{opt: [{seeds: {@@range: [0, 1]}}]}"}, "the same for the whole zoo", ""),
    "equal coupled entries": (
        {"coupled": "{opt: [{task: {val: 3}}, @@{task: {val: 3}}]}"},
        "the coupled entries opt[0] and opt[1] give the same cells",
        "",
    ),
    "overlapping coupled entries": (
        {"coupled": "{a: [{task: {val: {grid: [3, 4]}}}, @@{task: {val: {grid: [4, 5]}}}]}"},
        "the coupled entries a[0] and a[1] give the same cells",
        "",
    ),
    "repeated key": (
        {"architecture": "{name: test-net, width: 3, @@width: 4}"},
        "the key 'width' is repeated",
        "keep the last",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_problem_with_place_message_and_remedy(name, write):
    changes, message, help = MISTAKES[name]
    marked = write(**{key.removeprefix("@@"): value for key, value in changes.items()})
    for key in changes:
        if key.startswith("@@"):
            marked = marked.replace(f"\n{key[2:]}:", f"\n{key}:")
    assert marked.count("@@") == 1
    before = marked.partition("@@")[0]
    with pytest.raises(BlueprintError) as caught:
        loads(marked.replace("@@", ""), "some.yaml")
    found = caught.value.problems
    assert [message in problem.message for problem in found] == [True], str(caught.value)
    place = found[0].position
    assert (place.line, place.column) == (before.count("\n") + 1, len(before) - before.rfind("\n")), str(caught.value)
    assert help in found[0].help


def test_a_problem_is_printed_with_its_line_and_a_caret_under_the_column(write):
    with pytest.raises(BlueprintError) as caught:
        loads(write(architecture="{name: test-net, act: rleu}"), "zoos/a.yaml")
    assert str(caught.value) == (
        "zoos/a.yaml:4:37: unknown act 'rleu' for architecture 'test-net'\n"
        "    architecture: {name: test-net, act: rleu}\n"
        "                                        ^\n"
        "known: relu, tanh. Did you mean 'relu'?"
    )
    assert caught.value.exit_code == 2


def test_all_problems_come_at_once_in_the_order_of_the_file(read):
    with pytest.raises(BlueprintError) as caught:
        read(
            zoo="BAD",
            task="{name: nothing}",
            architecture="{name: test-net, act: rleu, width: {grid: []}}",
            seeds="{range: [1, 1]}",
            model_split="{train: 0.1}",
            typo="1",
        )
    lines = [problem.position.line for problem in caught.value.problems]
    assert lines == [1, 3, 4, 4, 6, 7, 8]


def test_a_problem_of_many_strata_is_told_once(read):
    with pytest.raises(BlueprintError) as caught:
        read(
            architecture="{name: test-net, width: {grid: [1, 2, 3, 4]}, act: rleu}",
            resources="{cpus: {by: architecture.width, cases: {1: 2, 2: 1}}}",
        )
    assert len(caught.value.problems) == 1


def test_every_missing_section_is_told():
    with pytest.raises(BlueprintError) as caught:
        loads("zoo: tiny")
    missing = [problem.message for problem in caught.value.problems]
    assert missing == [f"missing key {name!r}" for name in ("version", "seeds", "task", "architecture", "training")]


def test_a_setting_of_one_optimizer_is_no_setting_of_another(read):
    optimizer = "{name: {grid: [test-plain, test-heavy]}, lr: 0.1, momentum: 0.9}"
    with pytest.raises(BlueprintError) as caught:
        read(training=f"{{epochs: 5, batch_size: 10, optimizer: {optimizer}}}")
    (problem,) = caught.value.problems
    assert problem.message == "optimizer 'test-plain' ignores 'momentum'"
    assert "momentum: {by: training.optimizer.name, cases: {test-heavy: 0.9}}" in problem.help


def test_a_million_times_a_thousand_cells_are_refused_without_being_made(read):
    values = list(range(1, 1001))
    with pytest.raises(BlueprintError) as caught:
        read(
            architecture=f"{{name: test-net, width: {{grid: {[v for v in values if v != 13]}}}}}",
            task=f"{{name: test-data, size: {{grid: {[v + 10 for v in values]}}}}}",
            seeds="{range: [0, 1000]}",
        )
    (problem,) = caught.value.problems
    product = "task.size (1,000) x architecture.width (999) x seeds (1,000) = 999,000,000 cells; at most 20,000,000"
    assert problem.message == product


def test_too_many_structural_combinations_are_refused(read):
    many = list(range(1, 201))
    with pytest.raises(BlueprintError, match="more than 20,000 combinations of structural choices"):
        read(
            training=f"""
            epochs: {{grid: {many}}}
            batch_size: {{grid: {many}}}
            optimizer: {{name: test-plain, lr: 1}}
            """,
            resources="{cpus: {by: training.epochs, cases: {1: {by: training.batch_size, cases: {1: 2}}}}}",
        )
