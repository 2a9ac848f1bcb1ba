# Writes and reads for ever: a guest that is killed under load. SERIAL: the disk.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
fio --name=busy --filename="$dev" --direct=1 --ioengine=libaio --rw=randrw --bs=16k --iodepth=16 --size=64m --time_based \
  --runtime=600 >/tmp/fio 2>&1 &
sleep 2
kill -0 $! || die "fio: $(tail -n 3 /tmp/fio)"
say busy
wait
die "fio ended: $(tail -n 3 /tmp/fio)"
