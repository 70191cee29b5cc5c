"""What a counted run leaves behind: a row for documents, and a line an example."""

import csv
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from lightning_is.experiments.docs import Finding
from lightning_is.experiments.docs.results import finite
from lightning_is.experiments.picked.counting import PickCounter
from lightning_is.experiments.picked.ranking import by_count, top_share

TOPS = {"top_1": 0.01, "top_10": 0.1, "top_25": 0.25}
COLUMNS = (
    *("", "examples", "trainings"),
    *("top 1 % take", "top 10 %", "top 25 %", "never trained on"),
)
NOTE = (
    "Trainings: examples of all steps together. The top 1 % are those trained on most "
    "often: in whole epochs they take 1 % of the trainings, and where those are few "
    "more by chance alone, as uniform draws of as many show (the control). Never "
    "trained on: of the examples that were loaded."
)


def summary(counter: PickCounter) -> dict[str, float]:
    """Sum up the counts.

    ``least`` and ``never`` are of the examples that were loaded; ``never_loaded`` is
    the share of the others in all.

    Args:
        counter: Has the counts, at least one training.
    """
    trained, was_loaded = counter.trained, counter.loaded > 0
    picked_from = trained[was_loaded]
    return {
        "examples": float(len(trained)),
        "loaded": float(counter.loaded.sum()),
        "trained": float(trained.sum()),
        "drawn": float(counter.drawn.sum()),
        "most": float(trained.max()),
        "least": float(picked_from.min()),
        "never": float((picked_from == 0).double().mean()),
        "never_loaded": float((~was_loaded).double().mean()),
        **{name: top_share(trained, share) for name, share in TOPS.items()},
    }


def write_examples(
    counter: PickCounter, labels: Int64[Tensor, " N"], path: Path
) -> None:
    """Write one line an example, those trained on most often first."""
    scores = counter.scores
    columns = ("example", "label", "loaded", "trained", "drawn", "per_load", "score")
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for place in by_count(counter.trained, scores).tolist():
            loaded, trained, drawn = (
                int(counts[place])
                for counts in (counter.loaded, counter.trained, counter.drawn)
            )
            per_load = f"{trained / loaded:.4g}" if loaded else ""
            score = f"{float(scores[place]):.4g}" if counter.scored[place] else ""
            label = int(labels[place])
            table.writerow([place, label, loaded, trained, drawn, per_load, score])


def finding(results: dict[str, float], title: str) -> Finding:
    """Return the row that documents show.

    Args:
        results: As of `summary`, and others; those that exist become numbers.
        title: Says which run it was.
    """
    tops = [f"{results[name]:.1%}" for name in TOPS]
    counts = [f"{results[name]:,.0f}" for name in ("examples", "trained")]
    row = [title, *counts, *tops, f"{results['never']:.1%}"]
    plain = {name.replace("/", "_"): value for name, value in results.items()}
    return Finding(title, COLUMNS, [row], NOTE, finite(plain))


def print_finding(found: Finding, folder: Path) -> None:
    """Print the row, and where the rest is."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder), caption=found.note)
    for number, heading in enumerate(found.columns):
        table.add_column(heading, justify="right" if number else "left")
    for row in found.rows:
        table.add_row(*row)
    Console().print(table)
