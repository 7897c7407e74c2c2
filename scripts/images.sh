#!/usr/bin/env bash
# Lint and build the images of k8s/images, and print their sizes: `scripts/images.sh [NAME...]`.
# ENGINE is buildah, podman or docker; OPTIONS go to its build, such as --isolation=chroot.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:-$(command -v buildah || command -v podman || command -v docker)}
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(cpu gpu loadtest training)
revision=$(git rev-parse HEAD)
for name in "${names[@]}"; do
  file=k8s/images/Dockerfile.$name
  .venv/bin/hadolint "$file"
  # shellcheck disable=SC2086
  "$engine" build ${OPTIONS:-} --build-arg "REVISION=$revision" -f "$file" -t "localhost/tuneline-$name:$revision" .
done
"$engine" images --format '{{.Repository}} {{.Size}}' | grep tuneline- | sort -u
