#!/bin/sh
# Runs this repository's ifr command with PYTHON if it is set, else with .venv if it exists, else with python3.
#
#     sh scripts/ifr.sh COMMAND ...
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m ifr "$@"
