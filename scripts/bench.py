"""Benchmarks of the library: paired ratios, by CPU time, on one thread.

python scripts/bench.py overhead    # a step without the callback, closed, open, by hand
python scripts/bench.py closed      # problems where sampling cannot help
python scripts/bench.py limit       # epochs a second against the measured limit
python scripts/bench.py stages      # the stages of sampling, by the size of the batch
python scripts/bench.py share       # the same, in an open step on 256 of 1024
python scripts/bench.py history     # choosing by old scores, by the size of the dataset
python scripts/bench.py passes      # the same, for every source
python scripts/bench.py variance    # of the gradient, by the scheme that draws
python scripts/bench.py memory      # at the peak of a process
python scripts/bench.py cuda        # on a GPU, where there is one
python scripts/bench.py all --out bench.json
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from lightning_is.experiments.bench import (
    BENCHMARKS,
    QUICK,
    Effort,
    measure,
    quiet,
)
from lightning_is.experiments.machine import steady_memory


def main() -> None:
    """Run benchmarks; print their tables, and write their numbers where asked."""
    asked = arguments()
    quiet()
    steady_memory()
    names = list(BENCHMARKS) if asked.benchmark == "all" else [asked.benchmark]
    found = measure(names, effort(asked), asked.only, asked.publish)
    if asked.out is not None:
        machine = {"torch": torch.__version__, "machine": platform.platform()}
        text = json.dumps({**machine, **found}, indent=2)
        asked.out.write_text(text + "\n")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--only", nargs="+", default=[], help="parts, such as mlp")
    parser.add_argument("--rounds", type=int, help="blocks of steps of every arm")
    parser.add_argument("--steps", type=int, help="of a block")
    parser.add_argument("--quick", action="store_true", help="try it out, in seconds")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--publish", metavar="NAME", help="write docs/results/NAME.json"
    )
    return parser.parse_args()


def effort(asked: argparse.Namespace) -> Effort | None:
    """Return how often to measure; None leaves that to the benchmarks."""
    given = {k: v for k in ("rounds", "steps") if (v := getattr(asked, k)) is not None}
    if asked.quick:
        return replace(QUICK, **given)
    return replace(Effort(), **given) if given else None


if __name__ == "__main__":
    main()
