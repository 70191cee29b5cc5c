"""Nothing that is loaded can run code, and nothing is fetched that nobody named."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lightning_is import ImportanceSamplingCallback
from lightning_is.data import PassSource
from lightning_is.sampling import AlwaysOpen, ImportanceSubset

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for name in ("lightning_is", "scripts") for path in (ROOT / name).rglob("*.py")
)
RUNS_CODE = {"eval", "exec", "compile", "__import__"}  # as plain names
UNPICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "subprocess.call", "subprocess.getoutput"}
DOWNLOADS = {  # checkpoints and sets that the user named
    "lightning_is/experiments/data/places.py": ["imports huggingface_hub"]
}
FETCHERS = {  # by their first argument
    *("load_dataset", "from_pretrained", "hf_hub_download", "snapshot_download"),
    *("data_set", "checkpoint_file"),  # our own, around those
}
FETCH = {"urllib", "requests", "httpx", "huggingface_hub", "wget", "socket", "ftplib"}


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def option(call: ast.Call, name: str) -> object:
    """The constant that a call gives for an argument, or a word that none is."""
    for keyword in call.keywords:
        if keyword.arg == name:
            node = keyword.value
            return node.value if isinstance(node, ast.Constant) else "computed"
    return "absent"


def faults(source: str) -> Iterator[str]:
    """What in a module could run what it loads, or load what nobody named."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = (getattr(node, "module", None) or "").split(".")[0]
            names = {alias.name.split(".")[0] for alias in node.names} | {module}
            plain = names if isinstance(node, ast.Import) else {module}
            yield from (f"imports {n}" for n in sorted(plain & (UNPICKLE | FETCH)))
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in RUNS_CODE or name in SHELLS:
            yield name
        if name.startswith("subprocess.") and option(node, "shell") is True:
            yield f"{name} in a shell"
        if name in {"torch.load", "load"} and option(node, "weights_only") is not True:
            yield "torch.load without weights_only=True"
        if name.endswith("torch.hub.load") or name == "hub.load":
            yield "torch.hub runs what it downloads"
        if name in {"np.load", "numpy.load"} and option(node, "allow_pickle") is True:
            yield "unpickles arrays"
        trusted = option(node, "trust_remote_code")
        if trusted not in ("absent", False):
            yield "trusts code of others"
        if name.endswith("from_pretrained") and trusted is not False:
            yield "asks whether to trust code of others"


def test_there_are_sources_to_look_at():
    assert len(SOURCES) > 80


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_runs_or_unpickles_what_it_loads(path):
    allowed = DOWNLOADS.get(path.relative_to(ROOT).as_posix(), [])
    assert list(faults(path.read_text())) == allowed


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import loads",
        "import joblib.memory",
        "def late():\n    import requests",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.hub.load(a, b)",
        "np.load(path, allow_pickle=True)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "load_dataset(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=None)",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)",
    ],
)
def test_such_a_line_would_be_noticed(line):
    assert list(faults(line))


@pytest.mark.parametrize(
    "line",
    [
        "module.eval()",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "re.compile('x')",
        "load_dataset(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=False)",
    ],
)
def test_an_ordinary_line_is_let_through(line):
    assert not list(faults(line))


def fetched(path: Path) -> Iterator[tuple[str, str]]:
    """What a module asks the hub for: the function, and what names it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = dotted(node.func).split(".")[-1]
            if function in FETCHERS:
                yield function, ast.unparse(node.args[0])


def test_what_is_fetched_is_what_the_user_named():
    calls = {
        (path.relative_to(ROOT).as_posix(), *call)
        for path in SOURCES
        for call in fetched(path)
    }
    place = "lightning_is/experiments"
    assert calls == {
        (f"{place}/data/places.py", "load_dataset", "path"),
        (f"{place}/data/places.py", "hf_hub_download", "path"),
        (f"{place}/data/documents.py", "data_set", "path"),
        (
            *(f"{place}/data/hub.py", "data_set"),
            "path if folder is None else str(folder)",
        ),
        (f"{place}/data/processor.py", "checkpoint_file", "path"),
        (f"{place}/pretrained.py", "checkpoint_file", "path"),
        (
            *(f"{place}/pretrained.py", "from_pretrained"),
            "path if folder is None else folder",
        ),
    }


def named(node: Any) -> Iterator[str]:
    """What a configuration names as a path or as a processor, at any depth."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key in ("path", "processor") and isinstance(value, str):
            yield value
        yield from named(value)


def test_the_configuration_names_nothing_else_to_fetch():
    files = [OmegaConf.load(path) for path in (ROOT / "conf").rglob("*.yaml")]
    found = {name for file in files for name in named(OmegaConf.to_container(file))}
    own = {
        *("???", "${model.path}"),  # what the user names
        "./checkpoints/cifar10_0to5",  # a folder
    }
    assert found - own == {
        *("ylecun/mnist", "uoft-cs/cifar10", "uoft-cs/cifar100"),
        "microsoft/resnet-50",
    }


def test_the_state_of_the_callback_loads_by_weights_only(tmp_path):
    for sampling in (
        ImportanceSamplingCallback(4, gate=AlwaysOpen()),
        ImportanceSamplingCallback(source=PassSource(ImportanceSubset(keep=0.5))),
    ):
        torch.save(sampling.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        sampling.load_state_dict(state)


def requirements() -> dict[str, str]:
    """Every package that pyproject.toml names, with its bounds."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'^    "([A-Za-z][\w-]*)((?:[<>=!~][^"]*)?)",$', text, re.M)
    return {name.lower(): bounds for name, bounds in listed if bounds}


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    found = [line.split(";")[0].strip().split("==") for line in lines if "==" in line]
    return {package.lower(): version for package, version in found}


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_dependencies_are_bounded_by_versions_that_were_tested():
    """From below by the lowest set, from above by the next after the pinned one."""
    lowest, newest = pinned("constraints-lowest.txt"), pinned("constraints.txt")
    bounds = requirements()
    assert {"torch", "lightning", "numpy", "hydra-core", "torchdata"} <= bounds.keys()
    for name, given in bounds.items():
        low, high = re.fullmatch(r">=([\d.]+),<([\d.]+)", given).groups()
        assert number(newest[name]) < number(high), name
        if name in lowest:  # tools that judge the source have but one version
            assert number(lowest[name])[: len(number(low))] == number(low), name
        else:
            assert name in {"mypy", "ruff"}
