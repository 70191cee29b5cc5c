"""Programs in processes of their own, as a user starts them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_program(name, *words, folder):
    """Run a program of scripts/ offline, in a folder that is also its home."""
    return subprocess.run(  # noqa: S603 - our own program and arguments
        [sys.executable, ROOT / "scripts" / name, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
