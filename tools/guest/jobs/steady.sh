# Verified I/O for some seconds, round after round: no error of a neighbour may show here. SERIAL: the disk. ROUNDS: how
# many; each is written, read back and compared.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
round=0
while [ $round -lt "$ROUNDS" ]; do
  fio --name=steady --filename="$dev" --direct=1 --ioengine=libaio --rw=randwrite --bs=16k --iodepth=8 --size=16m \
    --verify=crc32c --verify_fatal=1 --randseed=$round >/tmp/fio 2>&1 || die "fio: $(tail -n 3 /tmp/fio)"
  round=$((round + 1))
  say round $round
done
say errors "$(dmesg | grep -c -E 'I/O error|Sense Key')"
