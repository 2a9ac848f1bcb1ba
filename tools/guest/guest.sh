# What guest jobs share. Sourced by /init before the job.

# say KEY VALUE...: a line for the machine that started the guest.
say() {
  echo "@@ $*"
}

# die TEXT...: ends the job with a reason.
die() {
  say failed "$*"
  exit 1
}

# attempt COMMAND...: runs it and prints what it printed; ends the job where it fails.
attempt() {
  "$@" >/tmp/attempt 2>&1
  status=$?
  [ $status -eq 0 ] && return 0
  cat /tmp/attempt
  die "$* (exit status $status)"
}

# seconds: since the guest started, for measuring.
seconds() {
  cut -d ' ' -f 1 /proc/uptime
}

# serial_of sdX: the unit serial number that the disk gave. [SPC-4: Unit Serial Number VPD page]
serial_of() {
  tail -c +5 "/sys/block/$1/device/vpd_pg80" 2>/dev/null | tr -d ' \0'
}

# disk SERIAL: waits for the disk of that serial number and prints its device's path.
disk() {
  for _ in $(seq 300); do
    for block in /sys/block/sd*; do
      name=${block##*/}
      if [ "$(serial_of "$name")" = "$1" ] && [ -b "/dev/$name" ]; then
        echo "/dev/$name"
        return 0
      fi
    done
    usleep 100000
  done
  return 1
}

# nic [N]: waits for the NIC of hv_netvsc (or NIC_DRIVER) that is Nth by name, or the first, and prints its name.
nic() {
  for _ in $(seq 300); do
    name=$(for net in /sys/class/net/*; do
      driver=$(readlink -f "$net/device/driver")
      [ "${driver##*/}" = "${NIC_DRIVER:-hv_netvsc}" ] && echo "${net##*/}"
    done | sed -n "${1:-1}p")
    if [ -n "$name" ]; then
      echo "$name"
      return 0
    fi
    usleep 100000
  done
  return 1
}

# lease NIC: gets an address by DHCP and prints it.
lease() {
  udhcpc -i "$1" -n -q -f -t 20 -T 1 -s /lib/udhcpc.sh >/tmp/udhcpc 2>&1 || return 1
  ip -4 -o address show dev "$1" scope global | awk '{ print $4 }'
}

# checksum_errors: the kernel's counters of packets that came with a wrong checksum, where they are not 0.
checksum_errors() {
  nstat -az | awk 'tolower($1) ~ /csum/ && $2 != 0 { printf "%s=%s ", $1, $2 }'
}

# kernel_log: the evidence that the drivers in the box found what vmbusd gave.
kernel_log() {
  dmesg | grep -v ACPI: | grep -E -i 'hyper-?v|vmbus|hv_|scsi|sd [0-9]|netvsc' | head -n 60 | while read -r line; do
    say log "$line"
  done
}
