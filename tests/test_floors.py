"""A module imports only from lower floors, so mathematics never learns of Lightning."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lightning_is"
LOW = {"torch", "jaxtyping", "typing_extensions"}
MAY_IMPORT = {  # place: names it may import, besides the standard library and itself
    "sampling": LOW,
    "scoring": LOW | {"lightning_is.sampling", "numpy", "torchmetrics"},
    "data": LOW | {"lightning_is.sampling", "numpy"},
}
TOP = {"lightning_is.experiments"}  # the shell stands below the programs
HOSTS = {"lightning", "lightning_fabric", "pytorch_lightning"}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, ``.`` for a relative one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{above}.{alias.name}") for alias in node.names)


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def climbing(source: str, place: str) -> list[str]:
    """What a module of ``place`` imports from a floor that is not below its own."""
    own = {f"lightning_is.{place}"}
    allowed = MAY_IMPORT[place] | own | sys.stdlib_module_names
    return [f"{line}: {n}" for line, n in imports(source) if not within(n, allowed)]


def private_host_names(source: str) -> list[str]:
    """Private names of Lightning that a module imports or reaches by a dotted path."""
    found, aliases = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else None
            for alias in node.names:
                name = alias.name if module is None else f"{module}.{alias.name}"
                if within(name, HOSTS):
                    aliases.add(alias.asname or alias.name.split(".")[0])
                    found += [(node.lineno, name)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if within(name, aliases):
                found += [(node.lineno, name)]
    return [
        f"{line}: {name}"
        for line, name in found
        if any(p.startswith("_") and not p.startswith("__") for p in name.split("."))
    ]


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_go_down(place):
    for path in sources(ROOT / place):
        assert not climbing(path.read_text(), place), path


def test_the_shell_knows_nothing_of_the_experiments():
    for path in sorted(ROOT.glob("*.py")):
        names = [name for _, name in imports(path.read_text())]
        assert not any(within(name, TOP) for name in names), path


@pytest.mark.parametrize(
    "line",
    [
        "import lightning_is.experiments",
        "from lightning_is import experiments",
        "def late():\n    from lightning_is.experiments.models import MLP",
    ],
)
def test_an_import_of_the_experiments_is_noticed(line):
    assert any(within(name, TOP) for _, name in imports(line))


def test_nothing_rests_on_private_names_of_lightning():
    for path in sources(ROOT):
        assert not private_host_names(path.read_text()), path


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("sampling", "import lightning"),
        ("sampling", "import torchmetrics"),
        ("sampling", "from lightning_is.scoring import tap"),
        ("sampling", "from lightning_is import callback"),
        ("sampling", "from ..scoring import tap"),
        ("sampling", "def late():\n    import numpy"),
        ("scoring", "from lightning_is.data.take import take"),
        ("scoring", "import lightning.pytorch as L"),
        ("data", "from lightning_is.scoring import tap"),
        ("data", "import torchmetrics"),
    ],
)
def test_an_import_that_climbs_is_noticed(place, line):
    assert climbing(line, place)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("sampling", "import math, torch.nn"),
        ("sampling", "from lightning_is.sampling.numerics import tau"),
        ("scoring", "from lightning_is.sampling import tau"),
        ("scoring", "from lightning_is import sampling"),
        ("scoring", "from torchmetrics import Metric"),
        ("data", "from torch.utils.data import Dataset"),
    ],
)
def test_an_import_that_goes_down_is_let_through(place, line):
    assert not climbing(line, place)


@pytest.mark.parametrize(
    ("line", "private"),
    [
        ("from lightning.pytorch.utilities.imports import _X", True),
        ("from lightning.pytorch._graveyard import x", True),
        ("import lightning.fabric._y", True),
        ("import lightning.pytorch as L\nL.trainer._z", True),
        ("from lightning.pytorch import trainer\ntrainer._z.go()", True),
        ("from lightning.pytorch import Callback", False),
        ("import lightning as L\nL.__version__", False),
        ("from elsewhere import _x\nself._y = _x._z", False),
    ],
)
def test_a_private_name_of_lightning_is_noticed(line, private):
    assert bool(private_host_names(line)) is private
