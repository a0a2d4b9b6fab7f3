#!/usr/bin/env bash
# What `make demo` runs; works without activating .venv too.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
exec python scripts/demo.py "$@"
