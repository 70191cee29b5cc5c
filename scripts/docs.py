"""Write the numbers of docs/results into README.md and docs/*.md; see docs/README.md.

python scripts/docs.py           # fill in what changed
python scripts/docs.py --check   # exit 1 and name what differs
"""

import argparse
import sys
from pathlib import Path

from lightning_is.experiments.docs import fill


def main() -> int:
    """Fill in or check; the exit status is 1 if something differs or is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    asked = parser.parse_args()
    try:
        differences = fill(Path(__file__).parents[1], check=asked.check)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for line in differences:
        print(f"{line} {'differs' if asked.check else 'filled in'}")
    return int(asked.check and bool(differences))


if __name__ == "__main__":
    sys.exit(main())
