# What an administrator does to a NIC, under traffic: MTU, down and up ROUNDS times, unbind and bind REBINDS times, a restart.
# The disk of the serial number SERIAL tells the second boot from the first.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"

works() {
  for _ in $(seq 40); do
    ping -c 1 -W 1 "$HOST" >/dev/null 2>&1 && return 0
    usleep 100000
  done
  die "after $1 the NIC does not work"
}

traffic() {
  while :; do
    socat -u OPEN:/dev/zero "TCP4:$HOST:5003,connect-timeout=2" 2>/dev/null
    usleep 50000
  done
}

if [ "$(head -c 6 "$dev")" = second ]; then
  say boot second
  works "a restart"
  exit 0
fi
say boot first
static() {
  ip address replace "$address" dev "$nic"
}

attempt ip link set "$nic" mtu 9000
static
works "MTU 9000"
ping -f -q -c 10000 -s 8972 -M "do" -W 5 "$HOST" >/tmp/ping 2>&1
say ping "8972 $(grep transmitted /tmp/ping)"
grep -q ' 10000 received' /tmp/ping || die "jumbo frames: $(grep transmitted /tmp/ping)"
traffic &
traffic=$!
for mtu in 9000 1280 1500; do
  attempt ip link set "$nic" mtu $mtu
  static
  works "MTU $mtu"
done
say mtu changed
for round in $(seq "$ROUNDS"); do
  attempt ip link set "$nic" down
  attempt ip link set "$nic" up
  static
  [ $((round % 10)) -ne 0 ] || works "$round times down and up"
done
say bounced "$ROUNDS"
device=$(basename "$(readlink -f "/sys/class/net/$nic/device")")
for round in $(seq "$REBINDS"); do
  echo "$device" >/sys/bus/vmbus/drivers/hv_netvsc/unbind || die "unbind $round"
  echo "$device" >/sys/bus/vmbus/drivers/hv_netvsc/bind || die "bind $round"
  nic=$(nic) || die "no NIC after $round times unbind and bind"
  ip link set "$nic" up
  static
  [ $((round % 5)) -ne 0 ] || works "$round times unbind and bind"
done
say rebound "$REBINDS"
kill $traffic
printf second | dd of="$dev" conv=notrunc,fsync 2>/dev/null
say rebooting
reboot -f
sleep 60
die "the machine did not restart"
