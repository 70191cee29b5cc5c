"""Benchmarks of the library: paired ratios, by CPU time, on one thread.

python scripts/bench.py closed      # what the callback costs while its gate is shut
python scripts/bench.py limit       # steps a second against the measured limit
python scripts/bench.py equal_time  # loss and test error in the same CPU time
python scripts/bench.py passes      # choosing what to load, by the size of the dataset
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

import torch

from lightning_is.experiments import bench


def main() -> None:
    """Run one benchmark; print it, and write it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "benchmark", choices=["closed", "limit", "equal_time", "passes"]
    )
    parser.add_argument("--data", default="ylecun/mnist", help="hub name or folder")
    parser.add_argument("--rounds", type=int, default=5, help="of closed and limit")
    parser.add_argument("--steps", type=int, default=150, help="of each of their runs")
    parser.add_argument("--seeds", type=int, default=3, help="of equal_time")
    parser.add_argument("--seconds", type=float, default=60, help="CPU time of a run")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[15_000, 150_000, 1_500_000]
    )  # of passes
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()

    torch.set_num_threads(1)  # CPU time is then the time a step takes
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The '.*' does not have many workers")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
    if asked.benchmark == "equal_time":
        result = bench.equal_time(asked.data, asked.seeds, asked.seconds)
    elif asked.benchmark == "passes":
        result = bench.passes(asked.sizes, asked.steps)
    else:
        measure = {"closed": bench.closed, "limit": bench.limit}[asked.benchmark]
        result = measure(asked.data, asked.rounds, asked.steps)
    text = json.dumps(result, indent=2)
    if asked.out is not None:
        asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
