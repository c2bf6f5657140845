#!/bin/sh
# Trains IFR from scratch on a laptop: creates .venv, makes a data set of handwritten digits, trains, tests and draws
# the detections. KEY VALUE arguments change settings; OUTPUT names the folder of the results:
#     OUTPUT=~/digits sh quickstart.sh SOLVER.EPOCHS 1
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
experiment="$root/mask_rcnn.ifr.res18.fpn.digits"
output=${OUTPUT:-$root/outputs/digits}
export IFR_DATASETS="${IFR_DATASETS:-$root/datasets}"
export IFR_HOST="${IFR_HOST:-standalone}"

sh "$root/scripts/make_venv.sh" demo
sh "$root/scripts/ifr.sh" data make
# Use one GPU, or two CPU processes: if other jobs share the cores, two processes wait less for each other than two
# threads do.
if "$root/.venv/bin/python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    set -- --num-gpus 1 "$@"
else
    set -- --num-gpus 2 MODEL.DEVICE cpu "$@"
fi
sh "$experiment/pods_train.sh" "$@" OUTPUT_DIR "$output"
sh "$experiment/pods_test.sh" "$@" OUTPUT_DIR "$output"
shift 2
sh "$root/scripts/ifr.sh" show "$experiment" "$@" OUTPUT_DIR "$output"
cat <<TEXT

Done. Everything is in $output:
    pictures/found_beside_truth.png   detections (left) and ground truth (right)
    pictures/residuals.png            how fast the solvers reach the equilibrium
    inference/                        the detections in COCO format and the metrics of the table above
    model_final.pth                   the weights
To run it on your own pictures:
    sh "$root/scripts/ifr.sh" predict "$output/model_final.pth" PICTURE --output DIR
TEXT
