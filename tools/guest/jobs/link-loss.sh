# The link goes and comes back, under traffic. SERIAL: a disk with verified I/O all the time, which must not notice. DIGEST: of
# http://HOST:8000/data.
# load WHO: loads it to a file of WHO's. What came of it is in /tmp/load-WHO.
load() {
  timeout 25 wget -q -O "/tmp/data-$1" "http://$HOST:8000/data" 2>"/tmp/wget-$1"
  echo "status $?, $(wc -c <"/tmp/data-$1") bytes: $(cat "/tmp/wget-$1")" >"/tmp/load-$1"
  [ "$(sha256sum <"/tmp/data-$1" | cut -d ' ' -f 1)" = "$DIGEST" ]
}

rounds() {
  round=0
  while fio --name=steady --filename="$dev" --direct=1 --ioengine=libaio --rw=randwrite --bs=16k --iodepth=8 --size=4m \
    --verify=crc32c --verify_fatal=1 --randseed=$round >/tmp/fio 2>&1; do
    round=$((round + 1))
    echo $round >/tmp/round
  done
  tail -n 3 /tmp/fio >/tmp/disk-failed
}

# carrier VALUE: waits for it.
carrier() {
  for _ in $(seq 600); do
    [ "$(cat "/sys/class/net/$nic/carrier")" = "$1" ] && return 0
    usleep 100000
  done
  die "the carrier did not become $1"
}

dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
load once || die "loading over HTTP: $(cat /tmp/load-once)"
say loaded
echo 0 >/tmp/round
rounds &
while :; do
  load always
  usleep 10000
done &
loads=$!
say ready
carrier 0
say link-down
before=$(cat /tmp/round)
while [ "$(cat /tmp/round)" -lt $((before + 3)) ]; do
  [ ! -e /tmp/disk-failed ] || die "the disk: $(cat /tmp/disk-failed)"
  usleep 100000
done
say disk-goes-on
carrier 1
say link-up
kill $loads
for _ in $(seq 20); do
  load again && break
  usleep 500000
done
load again || die "loading over HTTP after the link came back: $(cat /tmp/load-again)"
[ ! -e /tmp/disk-failed ] || die "the disk: $(cat /tmp/disk-failed)"
say loaded again
