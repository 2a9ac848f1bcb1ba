# Measures two disks and a NIC, whoever serves them. FILE_MIB, NULL_MIB: the sizes by which the disks are found, one on a file and
# one on null_blk. NIC_DRIVER: by which the NIC is found. DRIVERS: modules to load first. HOST: who answers pings and iperf3.
# RUNTIME: seconds a job. JOBS: which, empty for all. Before and after each job a line is said, between which the host counts.
# shellcheck disable=SC2086  # several words
[ -z "$DRIVERS" ] || modprobe -a $DRIVERS

# disk_of MIB: the disk of that size, once it is there
disk_of() {
  for _ in $(seq 300); do
    for disk in /sys/block/*; do
      [ "$(cat "$disk/size")" != $(($1 * 2048)) ] || { echo "${disk##*/}"; return; }
    done
    usleep 100000
  done
  return 1
}
file=$(disk_of "$FILE_MIB") || die "no disk of $FILE_MIB MiB"
null=$(disk_of "$NULL_MIB") || die "no disk of $NULL_MIB MiB"
say scheduler "$(cat "/sys/block/$file/queue/scheduler")"
nic=$(nic) || die "no NIC on $NIC_DRIVER"
lease "$nic" >/tmp/lease || die "no address by DHCP"
attempt ping -c 1 -W 5 "$HOST"

# measured LABEL COMMAND...: runs it between the two lines; its output is in /tmp/out.
measured() {
  label=$1
  shift
  case " ${JOBS:-$label} " in *" $label "*) ;; *) return 1 ;; esac
  sync
  usleep 300000
  say begin "$label"
  "$@" >/tmp/out 2>&1 || die "$label: $(tail -n 2 /tmp/out)"
  say end "$label"
}

# disk_job LABEL DISK FIO-OPTION...
disk_job() {
  label=$1
  disk=$2
  shift 2
  measured "$label" fio --name=job --filename="/dev/$disk" --direct=1 --ioengine=libaio --size="${FILE_MIB}m" --norandommap --randrepeat=0 \
    --time_based --runtime="$RUNTIME" --output-format=terse --terse-version=3 --percentile_list=50:99 --group_reporting "$@" &&
    say fio "$label $(grep '^3;' /tmp/out)"
}

# net_job LABEL IPERF3-OPTION...
net_job() {
  label=$1
  shift
  measured "$label" iperf3 --client "$HOST" --time "$RUNTIME" --format k --interval 0 "$@" &&
    say iperf "$label | $(grep -E '(sender|receiver)$' /tmp/out | tail -n 2 | tr -s ' ' | tr '\n' '|')"
}

for medium in file null; do
  [ $medium = file ] && disk=$file || disk=$null
  for depth in 1 32; do
    for direction in read write; do
      disk_job "$medium-rand$direction-4k-qd$depth" "$disk" --rw=rand$direction --bs=4k --iodepth=$depth
    done
  done
  disk_job "$medium-randread-4k-qd32-4-jobs" "$disk" --rw=randread --bs=4k --iodepth=32 --numjobs=4
  for direction in read write; do
    disk_job "$medium-seq$direction-128k-qd8" "$disk" --rw=$direction --bs=128k --iodepth=8
  done
  disk_job "$medium-seqread-128k-qd8-4-jobs" "$disk" --rw=read --bs=128k --iodepth=8 --numjobs=4
done
measured ping ping -f -q -c "$PINGS" "$HOST" && say ping "ping $(grep -E '^rtt' /tmp/out)"
net_job tcp-send
net_job tcp-receive --reverse
net_job tcp-send-8-streams --parallel 8
net_job tcp-receive-8-streams --parallel 8 --reverse
net_job udp-send-64 --udp --bitrate 0 --length 64
exit 0
