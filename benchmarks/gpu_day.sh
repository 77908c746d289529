#!/usr/bin/env bash
# What only a GPU can show, in parts of nine minutes: benchmarks/gpu_day.sh check|tune|train|build; see gpu_day.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_day.py "$@"
