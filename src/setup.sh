#!/bin/sh
# Everything that a fresh checkout needs before it can run: Debian packages, npm packages, the native addon.
# Does nothing, in well under a second, where nothing is missing. Without root it says what to install.
# Usage: sh src/setup.sh [demo|test|bench|soak]
set -eu
cd "$(dirname "$0")/.."

# A package is missing when the file that it is wanted for is not there.
missing=
want() { [ -e "$2" ] || missing="$missing $1"; }
program() { command -v "$2" >/dev/null 2>&1 || [ -x "/usr/sbin/$2" ] || missing="$missing $1"; }

program g++ g++
program fuse3 fusermount3
case "${1:-demo}" in
demo | test | bench | soak)
  program qemu-system-x86 qemu-system-x86_64
  program busybox-static busybox
  program debootstrap debootstrap
  program docker-registry docker-registry
  want debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg
  # Without root, the image is made as if.
  [ "$(id -u)" = 0 ] || { program fakechroot fakechroot && program fakeroot fakeroot; }
  ;;
esac
case "${1:-demo}" in
test | bench | soak)
  program qemu-utils qemu-img
  program qemu-system-common qemu-storage-daemon
  program nbdkit nbdkit
  program libnbd-bin nbdinfo
  program fio fio
  program memcached memcached
  program ceph-mon ceph-mon
  program ceph-osd ceph-osd
  program radosgw radosgw
  program nginx-light nginx
  program s3cmd s3cmd
  program rclone rclone
  want libisal-dev /usr/include/isa-l/erasure_code.h
  program openssl openssl
  program curl curl
  program umoci umoci
  program skopeo skopeo
  program prometheus promtool
  program e2fsprogs e2fsck
  program attr getfattr
  program libcap2-bin setcap
  program acl setfacl
  program zstd zstd
  program mount losetup
  program git git
  program python3 python3
  program systemd systemd-analyze
  want libasan6 "$(g++ -print-file-name=libasan.so 2>/dev/null || echo /nonexistent)"
  ;;
esac
[ "${1:-demo}" != soak ] || program stress-ng stress-ng

if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "lazydisk needs Debian packages that are not here; install them: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
  fi
  echo "installing$missing" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

stamp=node_modules/.lazydisk-setup
if ! cmp -s package-lock.json "$stamp"; then
  echo "installing npm packages" >&2
  # Of the locked versions exactly: an older npm would choose others and write the lock file anew.
  npm ci --no-audit --no-fund --loglevel=error >&2
  cp package-lock.json "$stamp"
fi

node_modules/.bin/node native/build.ts >&2
