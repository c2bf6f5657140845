#!/bin/sh
# Trains this experiment, from any working directory:
#     sh pods_train.sh [--num-gpus N] [--num-machines M --machine-rank R --dist-url U] [--resume] [KEY VALUE ...]
folder=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit
[ -f "$folder/../scripts/ifr.sh" ] && exec sh "$folder/../scripts/ifr.sh" train "$folder" "$@"
exec ${PYTHON:+"$PYTHON" -m} ifr train "$folder" "$@" # outside a clone: the installed ifr
