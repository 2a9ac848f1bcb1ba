# Writes on the first boot, restarts the machine, reads on the second. SERIAL: the disk.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
if [ "$(head -c 8 "$dev")" != "written " ]; then
  say boot first
  head -c 4194296 /dev/urandom >/tmp/data
  { echo -n "written "; cat /tmp/data; } | dd of="$dev" bs=1M iflag=fullblock oflag=direct 2>/dev/null || die "writing failed"
  sync
  sha256sum </tmp/data | cut -d ' ' -f 1 | dd of="$dev" bs=512 seek=16384 conv=sync,notrunc 2>/dev/null || die "writing failed"
  sync
  say rebooting
  reboot -f
  sleep 60
  die "the machine did not restart"
fi
say boot second
expected=$(dd if="$dev" bs=512 skip=16384 count=1 2>/dev/null | tr -d '\0\n ')
found=$(head -c 4194304 "$dev" | tail -c +9 | sha256sum | cut -d ' ' -f 1)
[ "$found" = "$expected" ] || die "the data of the first boot is gone: $found instead of $expected"
say kept equal
