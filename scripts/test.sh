#!/usr/bin/env bash
# Lint, type check and test; arguments go to pytest: ./scripts/test.sh -k tau
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare test
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# A process for each core; an epilogue of one slow file would leave the others idle.
exec "$python" -m pytest --numprocesses auto --dist worksteal "$@"
