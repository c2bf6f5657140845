#!/bin/sh
# Tests this experiment, from any working directory: the newest checkpoint, or the one of MODEL.WEIGHTS.
#     sh pods_test.sh [--num-gpus N] [--start-iter I] [--end-iter I] [MODEL.WEIGHTS FILE] [OUTPUT_DIR DIR] [KEY VALUE ...]
folder=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit
exec sh "$folder/../scripts/ifr.sh" test "$folder" "$@"
