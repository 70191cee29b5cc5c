"""What the README tells a reader to type works."""

import re
import shlex
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from torch.utils.data import TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0]
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
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


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if "scripts/train.py" in c], ids=str
)
def test_every_training_command_composes(command):
    words = shlex.split(command)
    overrides = [w for w in words[words.index("scripts/train.py") + 1 :] if w != "-m"]
    single = [re.sub(r",.*", "", override) for override in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", single)
    assert cfg.method is not None


def test_the_scripts_exist_and_may_be_run():
    scripts = {w for c in COMMANDS for w in c.split() if w.startswith("./scripts/")}
    assert scripts == {"./scripts/train.sh", "./scripts/test.sh"}
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)
    for path in {w for c in COMMANDS for w in c.split() if w.startswith("scripts/")}:
        assert (ROOT / path).is_file()
