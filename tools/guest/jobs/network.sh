# The NIC's facts and its addresses. HOST, HOST6: the other side's; HOST6 is empty behind
# passt, which is not asked for IPv6 and answers no ping. Later jobs use
# what is set here.
nic=$(nic) || die "no NIC on hv_netvsc"
say nic "$nic $(cat "/sys/class/net/$nic/address") $(cat "/sys/class/net/$nic/mtu")"
address=$(lease "$nic") || die "no address by DHCP: $(tail -n 2 /tmp/udhcpc)"
say address "$address"
say features "$(ethtool -k "$nic" | sed -n 's/^[\t ]*\([a-z0-9-]*\): on.*/\1/p' | tr '\n' ' ')"
say channels "$(ethtool -l "$nic" | awk '/^Combined:/ { print $2 }' | tr '\n' ' ')"
say indirection "$(ethtool -x "$nic" | sed -n 's/^ *[0-9]*: *\([0-9 ]*\)$/\1/p' | tr -s ' \n' '  ')"
if [ -n "$HOST6" ]; then
  attempt ping -c 3 -i 0.2 -W 2 "$HOST"
  for _ in $(seq 100); do
    address6=$(ip -6 -o address show dev "$nic" scope global -tentative | awk '{ print $4 }' | head -n 1)
    [ -n "$address6" ] && break
    usleep 100000
  done
  [ -n "$address6" ] || die "no IPv6 address by router advertisement"
  say address6 "$address6"
  attempt ping -6 -c 3 -i 0.2 -W 2 "$HOST6"
fi
