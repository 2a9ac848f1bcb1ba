# Verified I/O at depth 32 beside iperf3, until the connection to HOST:5005, which lasts from begin to end, says "stop".
# After network.sh. SERIAL: the disk.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
socat -u "TCP:$HOST:5005" CREATE:/tmp/beats &
beats=$!
stopped() {
  grep -q stop /tmp/beats 2>/dev/null
}
(
  direction=
  while ! stopped; do
    iperf3 --client "$HOST" --time 5 $direction >/tmp/iperf 2>&1 || die "iperf3 $direction: $(tail -n 2 /tmp/iperf | tr '\n' ' ')"
    say streamed "$(grep receiver /tmp/iperf | tr -s ' ')"
    [ -z "$direction" ] && direction=--reverse || direction=
  done
) &
streams=$!
round=0
while ! stopped; do
  fio --name=verify --filename="$dev" --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=32 --size=8m \
    --verify=crc32c --verify_fatal=1 --randseed=$round >/tmp/fio 2>&1 || die "fio: $(tail -n 3 /tmp/fio)"
  kill -0 $beats || die "the connection that should last has ended"
  round=$((round + 1))
  say round $round
done
wait $streams || die "iperf3 did not end well"
kill $beats
say beats "$(grep -c beat /tmp/beats)"
say errors "$(dmesg | grep -c -E 'I/O error|Sense Key|Link is Down|unregister|Incorrect transaction')"
