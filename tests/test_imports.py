"""What importing costs, which floor may import which, and that nothing is ever unpickled."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

import backcast

PACKAGE = Path(backcast.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"collector", "errors", "files", "progress"}
#: A floor's height; each imports only from below. Those on the ground stand side by side.
HEIGHT = {
    **dict.fromkeys(BASE, 0),
    **dict.fromkeys(("data", "kernels", "scaling", "vectors"), 1),
    "manifests": 2,
    "tasks": 2,
    "attribution": 3,
    "multimodal": 4,
    "selectors": 5,
    "finetune": 6,
    "report": 7,
    "recipes": 8,
    "cli": 9,
}

HEAVY = {"torch", "numpy", "faiss", "scipy", "sklearn", "datasets", "transformers", "open_clip", "matplotlib"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after the statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_probe_sees_what_is_loaded():
    assert {"numpy", "backcast"} <= loaded_by("import backcast, numpy")


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import backcast; backcast.__version__; dir(backcast)") & HEAVY


@pytest.mark.parametrize("floor", ["scaling", "selectors", "manifests", "vectors"])
def test_laws_and_selectors_need_no_torch(floor):
    assert not loaded_by(f"import backcast.{floor}") & {"torch", "datasets", "transformers"}


def test_help_loads_nothing_heavy():
    assert not loaded_by(HELP) & HEAVY


def test_help_answers_in_under_a_second():
    # The processor's seconds, not the clock's: the suite's other workers share the machine.
    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", HELP], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert median(seconds() for _ in range(3)) < 1


HELP = """
import sys
from backcast.cli import main
sys.argv = ["backcast", "--help"]
try:
    main()
except SystemExit as left:
    assert not left.code
"""


# ------------------------------------------------------------------ public names


@pytest.mark.parametrize("name", backcast.__all__)
def test_every_public_name_is_there(name):
    assert getattr(backcast, name) is not None
    assert name in dir(backcast)


def test_type_checkers_see_the_names_that_users_get():
    imports = [node for node in ast.walk(tree(PACKAGE / "__init__.py")) if isinstance(node, ast.ImportFrom)]
    seen = {a.name: node.module for node in imports for a in node.names if "backcast." in str(node.module)}
    given = {name: f"backcast.{floor}" for name, floor in backcast._FLOOR_OF.items()}
    assert seen == given
    assert sorted(backcast.__all__) == sorted([*given, "__version__"])


def test_no_public_name_hides_a_floor():
    # Importing a floor binds its name in the package, so a lazy name alike would mean one or the other by chance.
    assert not set(backcast.__all__) & set(HEIGHT)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        backcast.nothing  # noqa: B018


# ------------------------------------------------------------------ floors


@dataclass(frozen=True)
class Import:
    """One import of the package's own, ``floor`` being what it reaches and ``typing`` whether only for types."""

    path: str
    line: int
    floor: str
    typing: bool


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def own_imports(path: Path) -> Iterator[Import]:
    parsed = tree(path)
    for_types = {
        id(inner)
        for node in ast.walk(parsed)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(ast.Module(node.body, []))
    }
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from backcast import x` reaches x; the package's other names would reach any floor
            names = (
                [f"backcast.{a.name}" for a in node.names]
                if node.module == "backcast"
                else [node.module or ""]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "backcast" and rest != "__version__":
                floor = rest.partition(".")[0]
                yield Import(str(path.relative_to(PACKAGE)), node.lineno, floor, id(node) in for_types)


OWN = [(path.relative_to(PACKAGE).with_suffix("").parts[0], i) for path in FILES for i in own_imports(path)]
OWN = [(floor, i) for floor, i in OWN if i.path != "__init__.py"]


def test_floors_import_only_from_below():
    assert len(OWN) > 50
    unknown = [i for floor, i in OWN if floor not in HEIGHT or i.floor not in HEIGHT]
    assert not unknown
    upward = [
        i for floor, i in OWN if i.floor != floor and HEIGHT[i.floor] >= HEIGHT[floor] and floor not in BASE
    ]
    assert not upward


def test_the_base_and_scaling_know_no_floor():
    assert not [i for floor, i in OWN if floor in BASE and i.floor not in BASE]
    assert not [i for floor, i in OWN if floor == "scaling" and i.floor not in {"scaling", *BASE}]


def test_selectors_see_attribution_only_as_types():
    allowed = {"selectors", "manifests", "data", "vectors", "scaling", *BASE}
    reached = [i for floor, i in OWN if floor == "selectors" and i.floor not in allowed]
    assert not [i for i in reached if i.floor != "attribution" or not i.typing]


# ------------------------------------------------------------------ pickle

PICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def pickling(parsed: ast.Module) -> Iterator[str]:
    """What in a module writes or reads pickles, as source."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            found = any(alias.name.partition(".")[0] in PICKLING for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            harmless = all(
                alias.name.endswith("Error") or alias.name in ("Parallel", "delayed") for alias in node.names
            )  # which pickle between this package's own processes
            found = str(node.module).partition(".")[0] in PICKLING and not harmless
        elif isinstance(node, ast.Call):
            true = {
                k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True
            }
            called = ast.unparse(node.func)
            found = (
                called.endswith(("torch.save", "read_pickle", "to_pickle"))
                or (called.endswith("torch.load") and "weights_only" not in true)
                or "allow_pickle" in true
            )
        else:
            continue
        if found:
            yield ast.unparse(node)


def test_nothing_is_pickled():
    assert not [f"{path}: {found}" for path in FILES for found in pickling(tree(path))]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.save(x, f)",
    ],
)
def test_pickling_is_recognised(source):
    assert list(pickling(ast.parse(source)))


def test_safe_loading_is_recognised():
    source = "from pickle import UnpicklingError\ntorch.load(f, weights_only=True)\nnp.load(f)"
    assert not list(pickling(ast.parse(source)))
