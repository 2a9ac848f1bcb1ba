# Eight streams each way, and packets on every queue; then the indirection table chooses the queues. HOST:
# iperf3's server.

# streams SECONDS [OPTION]
streams() {
  # shellcheck disable=SC2086  # no word where there is no option
  iperf3 --client "$HOST" --time "$1" --parallel 8 --format k --interval 0 $2 >/tmp/iperf 2>&1 || die "iperf3: $(tail -n 2 /tmp/iperf)"
}

# Which queue a flow is on is chance. With four times 9 flows, that one of four queues has none is 1 in 8000.
for direction in "" --reverse "" --reverse; do
  streams 2 "$direction"
  say iperf "tcp-8-streams$direction | $(grep -E 'SUM.*(sender|receiver)$' /tmp/iperf | tr -s ' ' | tr '\n' '|')"
done
say queues "$(ethtool -S "$nic" | awk '/[rt]x_queue_[0-9]+_packets/ { printf "%s%s ", $1, $2 }')"
say cpus "$(ethtool -S "$nic" | awk '/cpu[0-9]+_[rt]x_packets/ { printf "%s%s ", $1, $2 }')"

# received: packets of each queue until now
received() {
  ethtool -S "$nic" | awk '/rx_queue_[0-9]+_packets/ { printf "%s ", $2 }'
}

for weights in "1 0 0 0" "0 0 1 1" "0 1 0 0"; do
  # shellcheck disable=SC2086  # a word each
  attempt ethtool -X "$nic" weight $weights
  before=$(received)
  streams 2 --reverse
  say steered "$weights | $before| $(received)"
done
