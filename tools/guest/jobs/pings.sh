# PINGS packets of each of SIZES bytes to HOST, as fast as they are answered; none may be lost.
for size in $SIZES; do
  ping -f -q -c "$PINGS" -s "$size" -W 5 "$HOST" >/tmp/ping 2>&1
  say ping "$size $(grep transmitted /tmp/ping)"
  grep -q " $PINGS received" /tmp/ping || die "ping of $size bytes: $(grep transmitted /tmp/ping)"
done
