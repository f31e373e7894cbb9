"""A stage depends on what dvc.yaml names: the code that its verb imports, all of it and nothing else."""

import ast

import pytest

from tests import stages


@pytest.mark.parametrize("verb", stages.VERBS)
def test_a_stage_names_exactly_the_code_that_its_verb_imports(verb: str) -> None:
    imported, named = stages.imported(verb), stages.named(verb)
    repair = f"run `python -m tests.stages`: it names {', '.join(stages.shortest(verb))}"
    assert not imported - named, f"{verb} imports what dvc.yaml does not name; {repair}"
    assert not named - imported, f"dvc.yaml names for {verb} what it does not import; {repair}"


@pytest.mark.parametrize("verb", stages.VERBS)
def test_the_command_of_a_stage_calls_the_module_whose_imports_are_compared(verb: str) -> None:
    """The stage that dvc.yaml runs and the module of the same row of `VERBS` are one."""
    command = stages.command(verb)
    tree = ast.parse((stages.ROOT / "pvqae" / "cli" / "main.py").read_text("utf-8"))
    functions = [
        function
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for call in function.decorator_list
        if isinstance(call, ast.Call) and call.args and ast.literal_eval(call.args[0]) == command
    ]
    assert len(functions) == 1, command
    imports = [node for node in ast.walk(functions[0]) if isinstance(node, ast.ImportFrom) and node.module]
    names = {name for node in imports for alias in node.names for name in (node.module, f"{node.module}.{alias.name}")}
    assert stages.VERBS[verb] in names


SCORING = ("pvqae/inference/scoring.py", "pvqae/samples/geometry.py", "pvqae/model/backbones.py")


@pytest.mark.parametrize("file", SCORING)
def test_scoring_code_is_a_dependency_of_calibrate_and_evaluate(file: str) -> None:
    assert file in stages.named("calibrate")
    assert file in stages.named("evaluate")


def test_the_laboratory_is_no_dependency() -> None:
    every = set().union(*(stages.named(verb) for verb in stages.VERBS))
    assert not [file for file in every if "patchcore" in file or "experiments" in file]


def test_every_stage_of_dvc_yaml_is_compared() -> None:
    import yaml

    assert set(yaml.safe_load((stages.ROOT / "dvc.yaml").read_text("utf-8"))["stages"]) == set(stages.VERBS)
