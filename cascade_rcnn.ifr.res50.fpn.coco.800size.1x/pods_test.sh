#!/bin/sh
# Tests the newest checkpoint of this experiment, or MODEL.WEIGHTS, from any working directory:
#     sh pods_test.sh [--num-gpus N] [--start-iter I] [--end-iter I] [MODEL.WEIGHTS FILE] [OUTPUT_DIR DIR] [KEY VALUE ...]
folder=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit
[ -f "$folder/../scripts/ifr.sh" ] && exec sh "$folder/../scripts/ifr.sh" test "$folder" "$@"
exec ${PYTHON:+"$PYTHON" -m} ifr test "$folder" "$@" # outside a clone: the installed ifr
