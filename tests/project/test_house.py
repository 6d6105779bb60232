"""The house: which room may import which, that imports run one way, and how large a file or a function may become."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("method", "cost", "shared", "run", "scoring", "look")
SCRIPTS = {path.stem for path in ROOT.glob("compress_*_dtp.py")}

# Room -> what of ours its files may import. `utils` is what parts outside `madtp` share.
TOWERS = {"method", "cost", "shared", "transform"}
ARROWS = {
    "method": set(),
    "cost": {"method"},
    "shared": {"method", "cost"},
    "run": {"method", "cost", "shared", "utils", "data"},
    "scoring": {"method", "cost", "shared", "utils", "run", "data", "models"},
    "look": {"method", "cost", "shared", "utils", "run", "scoring", "data", "transform", "models", "clip", "scripts"},
    "madtp": {"method", "cost", "shared", "run", "scoring", "look"},
    "utils": {"method", "cost", "shared"},
    "transform": set(),
    "data": {"transform", "utils"},
    "models": TOWERS,
    "clip": TOWERS,
    "scripts": {"method", "cost", "shared", "run", "scoring", "data", "models", "clip", "utils"},
}


@cache
def modules():
    """Every module outside tests and benchmarks -> its file."""
    folders = ("madtp", "models", "clip", "data", "transform")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def room_of(module):
    """The room a module is in."""
    first, *rest = module.split(".")
    if first in SCRIPTS:
        return "scripts"
    return rest[0] if first == "madtp" and rest and rest[0] in ROOMS else first


@cache
def imports(module):
    """The modules of ours that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports from a relative place"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else node.module for name in inner}
    return {name for name in found if name in modules()} - {module}


def test_arrows_run_as_the_table_says():
    new = [
        f"{module} ({here}) -> {other} ({there})"
        for module in modules()
        for other in sorted(imports(module))
        if (here := room_of(module)) != (there := room_of(other)) and there not in ARROWS[here]
    ]
    assert not new, "new arrows between rooms: " + "; ".join(new)


def test_every_room_of_the_table_is_there():
    assert {room_of(module) for module in modules()} == ARROWS.keys()
    assert {path.name for path in (ROOT / "madtp").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))} == {
        "__init__.py",
        "__main__.py",
        *ROOMS,
    }


def test_no_circle_among_the_rooms():
    order = []
    while len(order) < len(ARROWS):
        free = [room for room, others in ARROWS.items() if room not in order and others - {room} <= {*order}]
        assert free, f"a circle among {sorted(ARROWS.keys() - {*order})}"
        order += free


def test_no_circle_among_the_files():
    state = {}

    def visit(module, path):
        if state.get(module) == "open":
            pytest.fail("a circle: " + " -> ".join([*path[path.index(module) :], module]))
        if module not in state:
            state[module] = "open"
            for other in sorted(imports(module)):
                visit(other, [*path, module])
            state[module] = "done"

    for module in modules():
        visit(module, [])


def test_a_new_arrow_is_named(monkeypatch):
    monkeypatch.setitem(ARROWS, "cost", set())
    with pytest.raises(AssertionError, match=r"madtp\.cost\.\w+ \(cost\) -> madtp\.method\.\w+ \(method\)"):
        test_arrows_run_as_the_table_says()


def test_every_room_says_what_it_is_and_what_it_does_not_know():
    for room in ROOMS:
        says = ast.get_docstring(ast.parse((ROOT / "madtp" / room / "__init__.py").read_text()))
        first, _, rest = says.partition("\n\n")
        assert len(first) > 30 and re.search("[Ii]t knows nothing of|[Nn]othing else knows", rest), room


def test_tests_mirror_the_rooms():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders >= {*ROOMS, "models", "clip", "data"}
    assert not list((ROOT / "tests").glob("test_*.py"))


PYTHON = sorted(path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.parts))


def test_files_and_functions_stay_short():
    long = []
    for path in PYTHON:
        text = path.read_text()
        lines = text.count("\n")
        long += [f"{path.relative_to(ROOT)}: {lines} lines"] if lines >= 400 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 >= 70:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long, "\n".join(long)
