# Errors of the host's storage reach the guest's application, on their disk alone. BAD: a disk whose second half the host
# cannot write. FULL: a disk for which the host has no more space at some point. GOOD: a disk without fault.
bad=$(disk "$BAD") || die "no disk with serial $BAD"
full=$(disk "$FULL") || die "no disk with serial $FULL"
good=$(disk "$GOOD") || die "no disk with serial $GOOD"
half=$(($(blockdev --getsize64 "$bad") / 2 / 1048576))

fio --name=good --filename="$good" --direct=1 --ioengine=libaio --rw=randwrite --bs=16k --iodepth=4 --size=32m \
  --verify=crc32c --verify_fatal=1 >/tmp/good 2>&1 &
goes_on=$!

dd if=/dev/zero of="$bad" bs=1M count=2 oflag=direct conv=notrunc 2>/tmp/dd || die "the good half fails: $(tail -n 1 /tmp/dd)"
if dd if=/dev/zero of="$bad" bs=64k count=1 seek=$((half * 16)) oflag=direct conv=notrunc 2>/tmp/dd; then
  die "a write that the host could not do succeeded"
fi
say direct-write "$(grep -i error /tmp/dd)"
if dd if=/dev/zero of="$bad" bs=64k count=16 seek=$((half * 16)) conv=notrunc,fsync 2>/tmp/dd; then
  die "fsync succeeded for data that the host could not write"
fi
say fsync "$(grep -i error /tmp/dd)"
if dd if="$bad" of=/dev/null bs=64k count=1 skip=$((half * 16)) iflag=direct 2>/tmp/dd; then
  die "a read that the host could not do succeeded"
fi
say direct-read "$(tail -n 1 /tmp/dd)"
if dd if=/dev/zero of="$full" bs=1M oflag=direct count=64 conv=notrunc 2>/tmp/dd; then
  die "writes beyond the host's space succeeded"
fi
say full "$(grep -i -E 'error|space' /tmp/dd)"
dd if="$bad" of=/dev/null bs=1M count=2 iflag=direct 2>/tmp/dd || die "the good half fails after errors"
wait $goes_on || die "the disk without fault: $(tail -n 3 /tmp/good)"
say good "verified"
dmesg | grep -E 'I/O error|Sense Key|Add. Sense|critical' | sort -u | head -n 12 | while read -r line; do
  say log "$line"
done
