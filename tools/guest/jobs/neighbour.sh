# Verified I/O in turns of equal work, TURNS of them: each writes MIB of the disk SERIAL, reads it back and compares. Before
# each it waits, so that the host can see to who is beside it.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
turn=0
while [ $turn -lt "$TURNS" ]; do
  say turn $turn
  sleep 4
  fio --name=turn --filename="$dev" --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=8 --size="${MIB}m" \
    --verify=crc32c --verify_fatal=1 --randseed=$turn --output-format=terse --terse-version=3 >/tmp/fio 2>&1 ||
    die "fio: $(tail -n 3 /tmp/fio)"
  say fio "turn-$turn $(grep '^3;' /tmp/fio)"
  turn=$((turn + 1))
done
say errors "$(dmesg | grep -c -E 'I/O error|Sense Key')"
