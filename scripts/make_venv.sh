#!/bin/sh
# Creates .venv in the root of this repository with IFR and the named extras, unless it is up to date.
#
#     sh scripts/make_venv.sh dev,bench
#
# PYTHON names the interpreter, python3 by default.
set -eu
extras=${1:-}
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
stamp="$root/.venv/installed-$extras"

if ! command -v "$python" >/dev/null 2>&1; then
    echo "No $python found: install Python 3.10 or newer, or set PYTHON to its path." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "$("$python" --version) is too old: IFR needs Python 3.10 or newer. Set PYTHON to a newer one." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "This Python cannot create virtual environments: install the package python$version-venv." >&2
    exit 1
fi
if [ -e "$stamp" ] && [ ! "$root/pyproject.toml" -nt "$stamp" ]; then
    exit 0
fi
[ -x "$root/.venv/bin/python" ] || "$python" -m venv "$root/.venv"
echo "Installing IFR into $root/.venv (once)"
"$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}"
touch "$stamp"
