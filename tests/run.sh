#!/bin/sh
# Runs all tests, in .venv, which is made if need be; arguments go to pytest.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
sh "$root/scripts/make_venv.sh" dev
cd "$root"
exec .venv/bin/python -m pytest "$@"
