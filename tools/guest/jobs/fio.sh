# fio on PART, a partition's path or empty for the second one of the disk SERIAL. RUNTIME: how many seconds a measured job runs.
# The first job writes what the others read, and verifies each block of it by CRC.
[ -n "$PART" ] || PART=$(disk "$SERIAL")2
fio_job() {
  label=$1
  shift
  fio --name=job --filename="$PART" --direct=1 --ioengine=libaio --size="${SIZE:-64m}" --randrepeat=0 \
    --output-format=terse --terse-version=3 --percentile_list=50:99 "$@" >/tmp/fio 2>&1 ||
    die "fio $label: $(tail -n 3 /tmp/fio)"
  say fio "$label $(grep '^3;' /tmp/fio)"
}
fio_job write-verify --rw=randwrite --bs=64k --iodepth=16 --verify=crc32c --verify_fatal=1
for depth in 1 32; do
  for direction in read write; do
    fio_job "rand$direction-4k-qd$depth" --rw=rand$direction --bs=4k --iodepth=$depth --norandommap \
      --time_based --runtime="$RUNTIME"
  done
done
for direction in read write; do
  fio_job "seq$direction-128k-qd8" --rw=$direction --bs=128k --iodepth=8 --time_based --runtime="$RUNTIME"
done
