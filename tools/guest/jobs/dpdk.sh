# Gives the NIC to DPDK's netvsc driver and lets testpmd answer ARP and pings, first with one queue, then with two.
# PINGS: how many the other side sends each time. [dpdk: doc/guides/nics/netvsc.rst]
class=f8615163-df3e-46c5-913f-f2d2f965ed0e
drivers=/sys/bus/vmbus/drivers
nic=$(nic) || die "no NIC on hv_netvsc"
device=$(basename "$(readlink -f "/sys/class/net/$nic/device")")
attempt modprobe uio_hv_generic
echo "$class" >"$drivers/uio_hv_generic/new_id" || die "uio_hv_generic takes no NICs"
echo "$device" >"$drivers/hv_netvsc/unbind" || die "hv_netvsc keeps the NIC"
echo "$device" >"$drivers/uio_hv_generic/bind" || die "uio_hv_generic does not take the NIC: $(dmesg | tail -n 2)"
say driver "$(basename "$(readlink -f "/sys/bus/vmbus/devices/$device/driver")")"

# The driver names its own buffers to the host by guest physical address, which only huge pages keep.
echo 64 >/proc/sys/vm/nr_hugepages
mkdir -p /dev/hugepages
attempt mount -t hugetlbfs hugetlbfs /dev/hugepages
mkdir -p /var/run
mkfifo /tmp/commands

# testpmd_says TEXT: waits until it has said TEXT.
testpmd_says() {
  for _ in $(seq 600); do
    grep -q "$1" /tmp/testpmd && return 0
    kill -0 "$testpmd" 2>/dev/null || break
    usleep 100000
  done
  cat /tmp/testpmd
  die "testpmd did not say '$1': $(tail -n 1 /tmp/testpmd)"
}

# answered: frames that testpmd has sent so far.
answered() {
  echo "show port stats 0" >&3
  sleep 1
  awk '/TX-packets:/ { count = $2 } END { print count + 0 }' /tmp/testpmd
}

for queues in 1 2; do
  : >/tmp/testpmd
  # With a terminal, for a file gets its words much later.
  echo "exec /dpdk/ld-linux-x86-64.so.2 --library-path /dpdk /dpdk/dpdk-testpmd -l 0-1 --iova-mode=pa --no-pci" \
    "-d librte_net_netvsc.so.25 -d librte_mempool_ring.so.25 -- --interactive --forward-mode=icmpecho" \
    "--total-num-mbufs=4096 --rxq=$queues --txq=$queues" >/tmp/run
  socat "EXEC:sh /tmp/run,pty,stderr,raw,echo=0" - \
    </tmp/commands >/tmp/testpmd 2>&1 &
  testpmd=$!
  exec 3>/tmp/commands
  testpmd_says "Port 0: "
  say port "$(sed -n 's/^Port 0: //p' /tmp/testpmd)"
  echo start >&3
  testpmd_says "forwards packets"
  say forwarding "$queues"
  for _ in $(seq 60); do
    [ "$(answered)" -ge "$PINGS" ] && break
  done
  echo "show port xstats 0" >&3
  echo stop >&3
  testpmd_says "Accumulated forward statistics"
  say counters "$(awk '/_good_packets:/ { printf "%s%s ", $1, $2 }' /tmp/testpmd)"
  echo quit >&3
  testpmd_says "Bye..."
  exec 3>&-
  wait "$testpmd" || die "testpmd ended with status $?: $(tail -n 1 /tmp/testpmd)"
done
