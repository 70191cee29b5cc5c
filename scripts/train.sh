#!/usr/bin/env bash
# Run the main job; arguments go to Hydra: ./scripts/train.sh method=uniform seed=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare experiments
exec "$python" "$root/scripts/train.py" "$@"
