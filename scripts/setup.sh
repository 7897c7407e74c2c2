#!/usr/bin/env bash
# Make .venv with everything: scripts/setup.sh cpu|gpu
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?cpu or gpu}
python=${PYTHON:-python3.11}

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
  echo "error: Python 3.11 is needed, found: $("$python" --version 2>&1 || echo none)" >&2
  echo "  Try: make PYTHON=/path/to/python3.11 ..." >&2
  exit 4
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet "uv>=0.9,<1"

# uv does not read pip's configuration; a machine that has one expects it to count.
links=${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"

options=()
if [ "$build" = cpu ]; then
  # The CPU build of torch has an index of its own, unless a local directory holds it. A GPU host
  # must not see such a directory: a resolver prefers 2.13.0+cpu to 2.13.0.
  if compgen -G "${links:-/nonexistent}/torch-*+cpu-cp311-*.whl" >/dev/null; then
    options+=(--find-links "$links")
  else
    options+=(--torch-backend cpu)
  fi
fi
# Compiled once here: a server imports some thousands of modules in each of its processes.
.venv/bin/uv pip install --compile-bytecode --python .venv/bin/python "${options[@]}" \
  --constraint "constraints/$build.txt" --editable ".[dev,$build]"
