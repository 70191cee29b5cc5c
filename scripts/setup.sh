# Sourced by its neighbours: `prepare EXTRA` makes .venv once and installs what is
# missing; `$python` runs in it. PYTHON chooses the interpreter that makes it.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

prepare() {
    local extra="$1" stamp wanted
    stamp="$root/.venv/.installed-$extra"
    wanted="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum) $root"
    [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    local base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
        echo "Python 3.10 or newer is needed, got $base:" \
            "$("$base" --version 2>/dev/null || echo "no such command")." \
            "Set PYTHON to a newer one." >&2
        exit 1
    }
    echo "Installing into .venv (once; a few minutes) ..." >&2
    # Without pip it is the leftover of an interrupted or failed attempt.
    "$python" -m pip --version >/dev/null 2>&1 ||
        "$base" -m venv --clear "$root/.venv" || {
        echo "Python's venv and ensurepip are needed to make .venv; on Debian and" \
            "Ubuntu install the package python3-venv, then run this again." >&2
        exit 1
    }
    "$python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root[$extra]"
    printf '%s' "$wanted" >"$stamp"
}
