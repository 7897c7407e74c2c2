#!/usr/bin/env bash
# Write constraints/cpu.txt, constraints/gpu.txt and the pins of llm-compressor's own environment:
# every version, no address and no path.
set -euo pipefail
cd "$(dirname "$0")/.."
links=${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
for build in cpu gpu; do
  options=()
  # A directory of wheels may hold a CPU torch, which a resolver prefers to the GPU build.
  if [ "$build" = cpu ] && compgen -G "${links:-/nonexistent}/torch-*+cpu-cp311-*.whl" >/dev/null; then
    options+=(--find-links "$links")
  elif [ "$build" = cpu ]; then
    options+=(--torch-backend cpu)
  fi
  .venv/bin/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links "${options[@]}" \
    --extra dev --extra "$build" --output-file "constraints/$build.txt" pyproject.toml
done
# In an environment of its own, since its pins conflict with vLLM's; torch is the same, so that its
# wheel is fetched once.
printf 'llmcompressor==0.14.*\ntorch==2.13.0\n' | .venv/bin/uv pip compile --quiet --upgrade \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-annotate \
  --no-emit-index-url --output-file export/quantize/llm_compressor.txt -
