# iperf3's server for another guest, until this one is killed.
iperf3 --server >/tmp/iperf 2>&1 &
usleep 500000
kill -0 $! || die "iperf3: $(tail -n 1 /tmp/iperf)"
say serving
wait
