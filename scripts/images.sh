#!/usr/bin/env bash
# Lint and build the images of k8s/images, and print their sizes: `scripts/images.sh [NAME...]`.
# `cpu` and `gpu` are the server on the vLLM project's image for CPUs and for GPUs.
# ENGINE is buildah, podman or docker. BASE replaces the base image, e.g. by its digest.
# OPTIONS go to the build: --isolation=chroot, or --secret id=pip,src=pip.conf (docs/kubernetes.md).
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:-$(command -v buildah || command -v podman || command -v docker || true)}
if [ -z "$engine" ]; then
  echo "error: no container engine is installed; expected buildah, podman or docker." >&2
  echo "  Try: apt-get install buildah" >&2
  exit 4
fi
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(cpu gpu loadtest training)
# A label that names a commit must not name files that differ from it.
revision=$(git describe --always --dirty --abbrev=40 --exclude='*')
vllm_for_cpus=docker.io/vllm/vllm-openai-cpu:v0.32.0
sizes=()
for name in "${names[@]}"; do
  options=(--build-arg "REVISION=$revision")
  base=${BASE:-}
  file=k8s/images/Dockerfile.$name
  case $name in
    gpu) file=k8s/images/Dockerfile.server ;;
    cpu) file=k8s/images/Dockerfile.server base=${BASE:-$vllm_for_cpus} ;;
  esac
  [ -z "$base" ] || options+=(--build-arg "BASE=$base")
  image=localhost/tuneline-$name:$revision
  .venv/bin/hadolint "$file"
  started=$SECONDS
  # shellcheck disable=SC2086
  "$engine" build ${OPTIONS:-} "${options[@]}" -f "$file" -t "$image" . >&2
  sizes+=("$image  $("$engine" images --format '{{.Size}}' "$image")  $((SECONDS - started)) s")
done
printf '%s\n' "${sizes[@]}"
