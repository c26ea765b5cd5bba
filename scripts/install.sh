#!/usr/bin/env bash
# install.sh PYTHON VENV LOCK: everything the project needs, into VENV, by plain pip.
set -euo pipefail
python=$1 venv=$2 lock=$3

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "Python 3.10 or newer is needed; '$python' is $("$python" -V 2>&1). Choose one: make PYTHON=python3.11 ..." >&2
    exit 2
fi
# A venv that was interrupted half-way, or whose interpreter is gone, has no working pip: it is made anew.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi

here=$("$venv/bin/python" -c 'import platform, sys; print("%d.%d-%s-%s" % (*sys.version_info[:2], platform.system(), platform.machine()))')
pins=()
if [ "$here" = 3.11-Linux-x86_64 ]; then
    pins=(--constraint "$lock")
else
    echo "the lock $lock is for Python 3.11 on Linux x86_64, this is $here: versions come from the ranges in pyproject.toml"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "${pins[@]}" "$@"; }

echo "installing into $venv (some minutes and 8 GB the first time)"
# torch and torchvision first and together: other packages ask for any torch and would draw in one that does not fit.
pip torch torchvision
pip --editable '.[dev]'
echo "installed"
