# Sourced by its neighbours: `prepare EXTRA` makes .venv once and installs what is
# missing; `$python` runs in it. Set PYTHON to choose another interpreter.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

prepare() {
    local extra="$1" stamp wanted
    stamp="$root/.venv/.installed-$extra"
    wanted="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum) $root"
    [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    local base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "Python 3.10 or newer is needed, got: $("$base" --version 2>&1)." \
            "Set PYTHON to a newer one." >&2
        exit 1
    }
    echo "Installing into .venv (once; a few minutes) ..." >&2
    [ -x "$python" ] || "$base" -m venv "$root/.venv"
    "$python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root[$extra]"
    printf '%s' "$wanted" >"$stamp"
}
