# shellcheck shell=bash
# Sourced by the commands in tools/. Installs what is missing of Debian's packages, and nothing where nothing is.

# To build and test vmbusd.
build_packages=(
  g++ meson ninja-build pkg-config liburing-dev libboost-dev catch2 libfmt-dev libspdlog-dev libcli11-dev libexpected-dev
  nlohmann-json3-dev libtomlplusplus-dev prometheus-cpp-dev libseccomp-dev libnbd-dev acpica-tools scdoc python3 clang libclang-rt-dev
  ccache nbdkit libbenchmark-dev valgrind spin gcovr zsh fish systemtap-sdt-dev
)
# To run guests: the emulated root partition, the guest's image (its programs are copied from here) and the compiler's
# side of a static fio.
guest_packages=(
  qemu-system-x86 busybox-static fio iperf3 ethtool sg3-utils e2fsprogs fdisk dmsetup iproute2 iputils-ping dnsmasq-base
  passt socat kmod xz-utils zstd lz4 mmdebstrap openssh-client
  debian-archive-keyring dpkg-dev make libaio-dev zlib1g-dev
)
# What vmbusd is measured beside, and perf to count system calls. The storage daemon is in qemu-system-common.
peer_packages=(
  fio qemu-system-common dpdk-dev librte-net-vhost23 librte-net-virtio23 librte-mempool-ring23 linux-perf debian-archive-keyring
)
# To make Debian packages, and a clean system to install them in.
packaging_packages=(debhelper dh-apparmor lintian mmdebstrap debian-archive-keyring)

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo "$@"
  fi
}

# ensure_packages PACKAGE...: apt is called for what dpkg does not list as installed, so a second run costs nothing.
ensure_packages() {
  local missing=() package
  for package in "$@"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
      missing+=("$package")
    fi
  done
  if [ "${#missing[@]}" -eq 0 ]; then
    return 0
  fi
  echo "installing ${missing[*]}" >&2
  if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2; then
    as_root apt-get update -qq >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2
  fi
}

ensure_build_packages() {
  ensure_packages "${build_packages[@]}"
}

# The one that a test opens reports in; it is skipped where there can be none.
ensure_browser() {
  ensure_packages chromium || echo "Chromium cannot be installed; the test of reports will be skipped" >&2
}

ensure_guest_packages() {
  ensure_packages "${guest_packages[@]}"
}

# ensure_command_packages ARGUMENT...: for a command that builds and boots guests; its --help needs Python alone.
ensure_command_packages() {
  case " $* " in
    *' --help '* | *' -h '*) ensure_packages python3 ;;
    *)
      ensure_build_packages
      ensure_guest_packages
      ;;
  esac
}
