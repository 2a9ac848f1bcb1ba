# iperf3 against HOST, SECONDS_EACH a run. The lines that it prints last go to the machine that started the guest.
iperf_job() {
  label=$1
  shift
  iperf3 --client "$HOST" --time "$SECONDS_EACH" --format k --interval 0 "$@" >/tmp/iperf 2>&1 ||
    die "iperf3 $label: $(tail -n 2 /tmp/iperf)"
  say iperf "$label | $(grep -E '(sender|receiver)$' /tmp/iperf | tail -n 2 | tr -s ' ' | tr '\n' '|')"
}
iperf_job tcp-send
iperf_job tcp-receive --reverse
iperf_job tcp-send-4-streams --parallel 4
iperf_job tcp-receive-4-streams --parallel 4 --reverse
iperf_job udp-send --udp --bitrate "$UDP_RATE"
iperf_job udp-receive --udp --bitrate "$UDP_RATE" --reverse
