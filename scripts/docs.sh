#!/bin/sh
# Builds the documentation into site/, in .venv, which is made if need be. A warning is an error.
#
#     sh scripts/docs.sh
#
# To read the pages while you write them: .venv/bin/zensical serve
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
sh "$root/scripts/make_venv.sh" docs
cd "$root"
exec .venv/bin/zensical build --clean --strict
