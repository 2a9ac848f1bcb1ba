# A read-only disk reads, and refuses writes in the way that makes the guest call it read-only. SERIAL: the disk, with an
# ext4 file system on it that holds the file "hello".
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
say ro "$(cat "/sys/block/${dev##*/}/ro")"
kernel_log
# Past the block layer, which knows by MODE SENSE that it must not: WRITE(10) of one block by the SCSI generic driver.
head -c 512 /dev/zero >/tmp/block
modprobe sg
generic=$(ls "/sys/block/${dev##*/}/device/scsi_generic")
sg_raw -s 512 -i /tmp/block "/dev/$generic" 2a 00 00 00 00 00 00 00 01 00 >/tmp/sg 2>&1
say sg-status $?
say sense "$(tr '\n' ' ' </tmp/sg)"
if mount -t ext4 -o rw "$dev" /mnt 2>/tmp/mount; then
  grep -q ' /mnt ext4 ro' /proc/mounts || die "the read-only disk was mounted for writing"
else
  attempt mount -t ext4 -o ro "$dev" /mnt
fi
say hello "$(cat /mnt/hello)"
attempt umount /mnt
