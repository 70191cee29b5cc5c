"""What the README and the pages tell a reader to type works."""

import re
import shlex
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from torch.utils.data import TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.experiments.bench import BENCHMARKS
from lightning_is.experiments.compare.arms import composed
from lightning_is.experiments.compare.jobs import check

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[str]:
    """What a page tells a reader to type."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines]


COMMANDS = commands(README)
RUNS = [
    (page.name, command)
    for page in PAGES
    for command in commands(page.read_text())
    if command.startswith("python scripts/")
]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_the_code_at_the_top_trains(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "model": kit.Classifier(kit.mlp()),
        "train_set": TensorDataset(*kit.examples(256)),
    }
    code = BLOCKS[0]
    assert len(code.splitlines()) == 8
    exec(code, names)  # noqa: S102
    assert set(names["model"].seen) <= {16, 32, 64, 128}
    assert names["trainer"].current_epoch == 10


def test_the_code_of_the_paper_makes_its_parts(kit):
    names = {"my_datamodule": L.LightningDataModule()}
    exec(BLOCKS[1], names)  # noqa: S102
    assert isinstance(names["callback"], ImportanceSamplingCallback)
    assert isinstance(names["data"], OversamplingDataModule)


def test_the_code_of_other_methods_makes_callbacks():
    names = {"ImportanceSamplingCallback": ImportanceSamplingCallback}
    exec(BLOCKS[2], names)  # noqa: S102
    for name in ("prioritized", "selective_backprop"):
        assert isinstance(names[name], ImportanceSamplingCallback)


def test_every_method_is_explained():
    for path in (ROOT / "conf" / "method").glob("*.yaml"):
        assert re.search(rf"^\|.*`{path.stem}`.*\|$", README, re.MULTILINE), path


def test_every_code_block_is_tested():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize(("page", "command"), RUNS, ids=str)
def test_every_command_of_every_page_composes(page, command):
    _, program, *words = shlex.split(command)
    assert (ROOT / program).is_file()
    if program == "scripts/bench.py":
        assert words[0] in BENCHMARKS
        return
    if program == "scripts/docs.py":
        assert words in ([], ["--check"])
        return
    # Several values of a sweep: the first stands for them all.
    sweep = "-m" in words
    words = [re.sub(r"(?<=\w),.*", "", w) if sweep else w for w in words if w != "-m"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(Path(program).stem, words)
        assert cfg.method is not None
        if program == "scripts/compare.py":
            check(cfg, words)  # or refuses
            assert composed(cfg, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", page.read_text()))
    for link in links:
        path, _, place = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if place:
            assert place in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """Names of the headings of a page, as links have them."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


def test_the_scripts_exist_and_may_be_run():
    scripts = {w for c in COMMANDS for w in c.split() if w.startswith("./scripts/")}
    assert scripts == {"./scripts/train.sh", "./scripts/test.sh"}
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)
    for path in {w for c in COMMANDS for w in c.split() if w.startswith("scripts/")}:
        assert (ROOT / path).is_file()
