#!/bin/bash
# What both images are made of, a stage at a time: containers/Dockerfile and containers/tgm_scale.def call the same
# stages in the same order. The last is the code, so that a change of it builds nothing else anew.
#   containers/install.sh system          Debian's and Ubuntu's packages, and a Python environment in /opt/tgm_scale
#   containers/install.sh dependencies    what setup.cfg asks for, in the versions of constraints.txt
#   containers/install.sh flash           flash-attn, compiled against the torch above
#   containers/install.sh code            this package
# From the folder that has setup.cfg. MAX_JOBS and FLASH_ATTN_CUDA_ARCHS are those of the build arguments.
set -euo pipefail

readonly PREFIX=/opt/tgm_scale

PACKAGES=(
  # DeepSpeed compiles its operators when they are first asked for; git tells a run which commit it is of
  ca-certificates g++ git ninja-build python3 python3-dev python3-venv
  # NCCL opens these by name, and falls back to TCP without them: verbs, the drivers of the cards, connections.
  # EFA is not covered: it wants Amazon's libfabric and aws-ofi-nccl, in the versions that the host's driver asks for.
  libibverbs1 ibverbs-providers librdmacm1 libibumad3 libnuma1
)

system() {
  apt-get update
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${PACKAGES[@]}"
  rm -rf /var/lib/apt/lists/*
  git config --system --add safe.directory '*' # a checkout that is mounted belongs to somebody else
  python3 -m venv "$PREFIX"
}

# What a section of setup.cfg asks for, such as `options install_requires`, before there is code to install
requirements() {
  "$PREFIX/bin/python" -c 'import configparser, sys
settings = configparser.ConfigParser()
settings.read("setup.cfg")
print(settings[sys.argv[1]][sys.argv[2]])' "$@" >/tmp/requirements.txt
}

dependencies() {
  requirements options install_requires
  "$PREFIX/bin/pip" install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt
  rm /tmp/requirements.txt
}

# An hour or more of many cores; each of the jobs takes up to some 8 GB of memory
flash() {
  requirements options.extras_require flash
  "$PREFIX/bin/pip" install --no-cache-dir packaging setuptools wheel
  MAX_JOBS=${MAX_JOBS:?} FLASH_ATTN_CUDA_ARCHS=${FLASH_ATTN_CUDA_ARCHS:?} "$PREFIX/bin/pip" install --no-cache-dir \
    --no-build-isolation --constraint constraints.txt --requirement /tmp/requirements.txt
  rm /tmp/requirements.txt
}

code() {
  "$PREFIX/bin/pip" install --no-cache-dir --no-deps --constraint constraints.txt .
  "$PREFIX/bin/pip" check
  (cd / && "$PREFIX/bin/tgm-scale" --help >/dev/null)
}

case "${1:-}" in
  system | dependencies | flash | code) "$1" ;;
  *) sed -n '2,8s/^# //p' "$0" >&2 && exit 2 ;;
esac
