#!/usr/bin/env bash
# The quickstart's student in emulated FP8, every recipe beside fp32, the table of all and the curve. Run
# examples/quickstart.sh first.
#
#   examples/quickstart_fp8.sh [--seeds 1 2 3] [--tp 1 2] [--recipes delayed current blockwise mxfp8] [KEY=VALUE ...]
#   examples/quickstart_fp8.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -d .venv ]; then export PATH="$PWD/.venv/bin:$PATH"; fi
export OMP_NUM_THREADS=1
exec python examples/quickstart_fp8.py "$@"
