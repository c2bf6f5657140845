#!/bin/sh
# Creates .venv-mmdet in the root of this repository: mmdetection, and the packages of .venv, which it shares.
#
#     sh scripts/make_mmdet_venv.sh
#     .venv-mmdet/bin/python -m pytest tests/hosts -k mmdet
#
# .venv stays without mmdetection.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
sh "$root/scripts/make_venv.sh" dev
own="$root/.venv-mmdet"
stamp="$own/installed"
if [ -e "$stamp" ] && [ ! "$root/scripts/mmdet.txt" -nt "$stamp" ]; then
    exit 0
fi
echo "Installing mmdetection into $own (once)"
"$root/.venv/bin/python" -m venv --clear "$own"
"$own/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$root/scripts/mmdet.txt"
# Only now, so that pip does not take packages of .venv for its own.
site=$("$own/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shared=$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf 'import site; site.addsitedir("%s")\n' "$shared" > "$site/shared.pth"
touch "$stamp"
