# With each offload switched off alone, and with all of them off, BYTES go to HOST and come from it, and arrive right. DIGEST: of
# what port 5001 gives; port 5002 answers what it gets with its SHA-256.
head -c "$BYTES" /dev/urandom >/tmp/out
sum=$(sha256sum </tmp/out | cut -d ' ' -f 1)

transfer() {
  got=$(socat -u -b 65536 "TCP4:$HOST:5001" - | sha256sum | cut -d ' ' -f 1)
  [ "$got" = "$DIGEST" ] || die "with $1: received $got"
  got=$(socat -t 60 -b 65536 - "TCP6:[$HOST6]:5002" </tmp/out | cut -d ' ' -f 1)
  [ "$got" = "$sum" ] || die "with $1: the host received $got"
  errors=$(checksum_errors)
  [ -z "$errors" ] || die "with $1: wrong checksums: $errors"
  say right "$1"
}

transfer "all offloads on"
for feature in rx tx-checksum-ipv4 tx-checksum-ipv6 tx sg tso tx-tcp6-segmentation gso gro lro rxvlan txvlan; do
  if ethtool -K "$nic" "$feature" off >/tmp/ethtool 2>&1; then
    transfer "$feature off"
    attempt ethtool -K "$nic" "$feature" on
  else
    say fixed "$feature $(head -n 1 /tmp/ethtool)"
  fi
done
attempt ethtool -K "$nic" rx off tx off sg off tso off gso off gro off
ethtool -K "$nic" lro off
transfer "all offloads off"
