# Disks on NBD servers. BAD: a disk on a server that is slow and fails now and then. GOOD: a disk without fault beside it.
# KILLED: a disk whose server is killed while "round" is said, and started again.
bad=$(disk "$BAD") || die "no disk with serial $BAD"
good=$(disk "$GOOD") || die "no disk with serial $GOOD"
killed=$(disk "$KILLED") || die "no disk with serial $KILLED"

while [ ! -e /tmp/verified ]; do
  fio --name=bad --filename="$bad" --direct=1 --ioengine=libaio --rw=randrw --bs=4k --iodepth=32 --size=8m --time_based --runtime=10
done >/tmp/bad 2>&1 &
errors=$!
fio --name=good --filename="$good" --direct=1 --ioengine=libaio --rw=randwrite --bs=16k --iodepth=4 --size=32m \
  --verify=crc32c --verify_fatal=1 >/tmp/good 2>&1 || die "the disk without fault: $(tail -n 3 /tmp/good)"
: >/tmp/verified
say good verified
wait $errors
say bad "$(grep -c -E 'io_u error.*(No data available|Input/output error)' /tmp/bad)"
dmesg | grep -E 'I/O error|Sense Key|Add. Sense|critical' | sort -u | head -n 12 | while read -r line; do
  say log "$line"
done
say medium-errors "$(dmesg | grep "\[${bad##*/}\]" | grep -c 'Sense Key : Medium Error')"
say other-errors "$(dmesg | grep -E 'I/O error|Sense Key' | grep -v -c "${bad##*/}")"

# 20 s of writes at least, then all of them read back.
say round begins
fio --name=killed --filename="$killed" --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=16 --size=16m --rate_iops=200 \
  --verify=crc32c --verify_fatal=1 >/tmp/killed 2>&1 || die "the disk whose server was killed: $(tail -n 3 /tmp/killed)"
say round ends
say killed-errors "$(dmesg | grep -E 'I/O error|Sense Key' | grep -c "${killed##*/}")"
