# Eight streams each way, and packets on every queue. HOST: iperf3's server.
for direction in "" --reverse; do
  # shellcheck disable=SC2086  # no word where there is none
  iperf3 --client "$HOST" --time 4 --parallel 8 --format k --interval 0 $direction >/tmp/iperf 2>&1 || die "iperf3: $(tail -n 2 /tmp/iperf)"
  say iperf "tcp-8-streams$direction | $(grep -E 'SUM.*(sender|receiver)$' /tmp/iperf | tr -s ' ' | tr '\n' '|')"
done
say queues "$(ethtool -S "$nic" | awk '/[rt]x_queue_[0-9]+_packets/ { printf "%s%s ", $1, $2 }')"
say cpus "$(ethtool -S "$nic" | awk '/cpu[0-9]+_[rt]x_packets/ { printf "%s%s ", $1, $2 }')"
