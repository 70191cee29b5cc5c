#!/usr/bin/env bash
# Lint, type check and test; arguments go to pytest: ./scripts/test.sh -k tau
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare test
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# A process for each core; one that runs out of tests takes some of the others.
exec "$python" -m pytest --numprocesses auto --dist worksteal "$@"
