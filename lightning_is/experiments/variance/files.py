"""The files of a measured run: numbers as it goes, figures at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lightning_is.experiments.docs import publish
from lightning_is.experiments.report import write_results
from lightning_is.experiments.variance.figures import draw_probabilities, draw_variance
from lightning_is.experiments.variance.published import finding
from lightning_is.experiments.variance.record import (
    Measurement,
    pooled_errors,
    pooled_points,
)
from lightning_is.experiments.variance.tables import (
    note,
    print_table,
    write_markdown,
    write_probabilities,
    write_variances,
)


@dataclass(frozen=True)
class Files:
    """What a run leaves in its folder.

    Args:
        cfg: As composed from ``conf/variance_reduction.yaml``.
        rows: Where each of the ``B`` examples stands in the training set.
    """

    cfg: DictConfig
    rows: Int[Tensor, " B"]

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return Path(self.cfg.output_dir)

    @property
    def title(self) -> str:
        """Says what was drawn from what."""
        return f"{self.cfg.title}: {self.cfg.drawn} drawn of {len(self.rows)}"

    @property
    def note(self) -> str:
        """Says what the columns of the table are."""
        return note(self.cfg.drawn, len(self.rows), repeats=self.cfg.repeats)

    def write(
        self,
        measurements: Sequence[Measurement],
        tests: Mapping[str, float] | None = None,
    ) -> None:
        """Write tables and numbers, in place of those of fewer measurements.

        Args:
            measurements: So far.
            tests: Loss and accuracy of each test part; None before the end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        results = {
            "title": self.title,
            "settings": OmegaConf.to_container(self.cfg, resolve=True),
            "at_the_end": None if tests is None else dict(tests),
            "squared_errors": pooled_errors(measurements),
            "points": pooled_points(measurements),
            "measurements": [found.plain() for found in measurements],
        }
        write_results(results, self.folder / "results.json")
        table = self.folder / "table.md"
        write_markdown(measurements, title=self.title, explained=self.note, path=table)
        write_variances(measurements, self.folder / "variance.csv")
        points = self.folder / "probabilities.csv"
        write_probabilities(measurements, self.rows, path=points)

    def finish(
        self, measurements: Sequence[Measurement], tests: Mapping[str, float]
    ) -> None:
        """Write all once more, draw the figures, print the table and publish it.

        Args:
            measurements: Of the whole run.
            tests: Loss and accuracy of each test part.
        """
        self.write(measurements, tests)
        one, other = (self.folder / f"{n}.png" for n in ("variance", "probabilities"))
        draw_variance(measurements, title=self.title, path=one)
        draw_probabilities(measurements, title=self.title, path=other)
        heading = f"{self.title}\n{self.folder}"
        print_table(measurements, title=heading, explained=self.note)
        if self.cfg.publish is not None:
            found = finding(measurements, title=self.title, note=self.note)
            more = {"probabilities": other}
            publish(self.cfg.publish, found, figure=one, more=more)
