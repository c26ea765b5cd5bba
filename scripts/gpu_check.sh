#!/usr/bin/env bash
# gpu_check.sh [--out FOLDER] [--minutes N] ...: what one CUDA GPU can prove without weights or data, as one table.
# Run from a source tree after `make install`; --help says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
# Nothing is fetched, and nothing is looked for on the hub.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline KINETO_LOG_LEVEL=5 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.gpu_check "$@"
