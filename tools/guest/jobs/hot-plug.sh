# A disk and a NIC come and go, TIMES times. SERIAL: a disk with verified I/O all the time, which must not notice. PLUGGED:
# the serial number of the disk that comes. HOST, GUEST: addresses of both sides on the NIC that comes.
rounds() {
  round=0
  while [ ! -e /tmp/stop ]; do
    fio --name=steady --filename="$dev" --direct=1 --ioengine=libaio --rw=randwrite --bs=16k --iodepth=8 --size=4m \
      --verify=crc32c --verify_fatal=1 --randseed=$round >/tmp/fio 2>&1 || tail -n 3 /tmp/fio >/tmp/disk-failed
    round=$((round + 1))
    echo $round >/tmp/round
  done
}

# until_gone PATH: waits for it to be there no more.
until_gone() {
  for _ in $(seq 600); do
    [ -e "$1" ] || return 0
    usleep 100000
  done
  die "$1 did not go"
}

# write_at MIB: writes a random MiB to that place of the disk that came, reads it back past the cache and compares.
write_at() {
  dd if=/dev/urandom of=/tmp/data bs=1M count=1 2>/dev/null
  attempt dd if=/tmp/data of="$plugged" bs=1M seek="$1" oflag=direct
  dd if="$plugged" bs=1M skip="$1" count=1 iflag=direct 2>/dev/null | cmp - /tmp/data || die "what was written at $1 MiB was not read back"
}

dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
echo 0 >/tmp/round
rounds &
steady=$!
say ready
for _ in $(seq "$TIMES"); do
  plugged=$(disk "$PLUGGED") || die "the disk did not come"
  size=$(cat "/sys/block/${plugged##*/}/size")
  for mib in 0 17 63; do write_at $mib; done
  say written "$plugged $size"
  for _ in $(seq 300); do
    grown=$(cat "/sys/block/${plugged##*/}/size")
    [ "$grown" != "$size" ] && break
    usleep 100000
  done
  say grown "$grown"
  write_at $((grown / 2048 - 1))
  say end-written
  until_gone "/sys/block/${plugged##*/}"
  say gone
  nic=$(nic) || die "the NIC did not come"
  ip address add "$GUEST/24" dev "$nic"
  ip link set "$nic" up
  for _ in $(seq 100); do
    ping -c 1 -W 1 "$HOST" >/tmp/ping 2>&1 && break
  done
  attempt ping -c 3 -i 0.2 -W 2 "$HOST"
  # It goes while it is in use: the driver waits for what it has sent.
  ping -f -q "$HOST" >/dev/null 2>&1 &
  say pinged "$nic"
  until_gone "/sys/class/net/$nic"
  kill $! 2>/dev/null
  say nic-gone
done
touch /tmp/stop
wait $steady
[ ! -e /tmp/disk-failed ] || die "the disk: $(cat /tmp/disk-failed)"
say rounds "$(cat /tmp/round)"
say errors "$(dmesg | grep -E 'I/O error|Sense Key' | grep -c "${dev##*/}")"
