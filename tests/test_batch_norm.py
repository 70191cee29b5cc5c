"""Running statistics come from all that was loaded: what that is worth, and when."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.batch_norm import (
    TITLES,
    DrawnStatistics,
    compare_statistics,
    differences,
)
from lightning_is.experiments.docs import read
from lightning_is.sampling import AlwaysOpen
from lightning_is.scoring_pass import ScoringPass

CONF = Path(__file__).parents[1] / "conf"
N, BATCH = 1200, 60


def two_kinds(easy: int, hard: int) -> TensorDataset:
    """Easy examples on both sides of zero; a few hard ones, off to one side."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (easy + hard,), generator=generator)
    x = 0.3 * torch.randn(easy + hard, 2, generator=generator)
    x[:easy, 0] += 2 * y[:easy] - 1
    x[easy:, 0] += 12
    return TensorDataset(x, y)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)
    )


def accuracy(network: nn.Module) -> float:
    x, y = two_kinds(1000, 0).tensors
    network.eval()
    with torch.no_grad():
        right = (network(x).argmax(1) == y).float().mean()
    network.train()
    return 100 * float(right)


def train(kit, network, lr, steps, *callbacks):
    data = DataLoader(
        two_kinds(N * 9 // 10, N // 10),
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    )
    length = {"max_epochs": -1, "max_steps": steps, "log_every_n_steps": 10**9}
    kit.trainer(*callbacks, **length).fit(kit.Classifier(network, lr=lr), data)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_late_draws_do_no_damage_that_their_own_statistics_would(kit, seed):
    """With a small learning rate, as at the end of a run, statistics alone change."""
    torch.manual_seed(seed)
    network, drawn = net(), DrawnStatistics()
    train(kit, network, 0.2, 120)
    uniform = accuracy(network)
    train(
        kit,
        network,
        1e-4,
        60,
        ImportanceSamplingCallback(BATCH // 5, gate=AlwaysOpen(), seed=seed),
        drawn,
    )
    assert uniform > 95
    assert accuracy(network) > uniform - 0.5
    with drawn.in_place():
        assert accuracy(network) < uniform - 5
    assert accuracy(network) > uniform - 0.5


def test_the_statistics_kept_beside_are_those_of_a_run_without_the_policy(
    kit, monkeypatch
):
    def run(*others):
        torch.manual_seed(1)
        network = net()
        # Scored as in training, so that statistics have no part in the draws either.
        sampling = ImportanceSamplingCallback(
            BATCH // 5, gate=AlwaysOpen(), score_mode="train"
        )
        train(kit, network, 0.1, 30, sampling, *others)
        return network

    drawn = DrawnStatistics()
    cured = run(drawn)
    scored = ScoringPass.run
    monkeypatch.setattr(ScoringPass, "sees_everything", False)
    monkeypatch.setattr(
        ScoringPass,
        "run",
        lambda self, tap, batch, examples, **_: scored(
            self, tap, batch, examples, update_statistics=False
        ),
    )
    off = run()
    assert torch.equal(cured[3].weight, off[3].weight)  # statistics train nothing
    assert not torch.allclose(cured[1].running_mean, off[1].running_mean)
    with drawn.in_place():
        torch.testing.assert_close(cured[1].running_mean, off[1].running_mean)
        torch.testing.assert_close(cured[1].running_var, off[1].running_var)


def configured(folder, *words):
    brief = ["data=digits", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = ["title=t", f"output_dir={folder}"]
        return compose("batch_norm", [*brief, *words, *own])


def test_the_program_compares_and_writes_what_it_found(tmp_path, monkeypatch):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = ["seeds=[0,1]", "outliers=0.05", "trainer.max_steps=6", "publish=mine"]
    rows = compare_statistics(configured(tmp_path, *words))
    assert all(row.keys() == TITLES.keys() for row in rows)
    assert all(0 <= value <= 100 for row in rows for value in row.values())
    assert (tmp_path / "batch_norm.json").exists()
    found = read(tmp_path / "docs" / "results" / "mine.json")
    for name, (mean, error) in differences(rows).items():
        assert found.value(f"{name}.mean") == mean
        assert found.value(f"{name}.error") == error
    cells = found.rows[0]
    assert cells[0] == "t, 1,297 images, 6 steps, 2 seeds"
    assert cells[1].startswith(f"{found.value('presample.mean'):.2f} ± ")
    assert cells[2].endswith(f" ± {found.value('drawn.error'):.2f}")


def test_one_seed_is_not_published(tmp_path):
    with pytest.raises(ValueError, match="two seeds at least, got"):
        compare_statistics(configured(tmp_path, "seeds=[3]", "publish=mine"))


def test_differences_are_paired():
    rows = [
        {"uniform": 90.0, "presample": 91.0, "drawn": 80.0},
        {"uniform": 80.0, "presample": 81.0, "drawn": 72.0},
    ]
    assert differences(rows) == {"presample": [1.0, 0.0], "drawn": [-9.0, 1.0]}


def test_a_network_without_batch_normalisation_is_refused(tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "batch_norm",
            ["data=digits", "model.norm=group", "title=t", f"output_dir={tmp_path}"],
        )
    with pytest.raises(ValueError, match="must have batch normalisation"):
        compare_statistics(cfg)
