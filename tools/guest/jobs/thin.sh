# What a thin disk tells and does. SERIAL: the disk, on which ext4 is filled, emptied and trimmed.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
name=${dev##*/}
kernel_log
say attention "$(dmesg | grep -c 'Power-on or device reset occurred')"
host=$(readlink -f "/sys/block/$name/device/../../..")
say channels "$(ls -d "${host%/host*}"/channels/* 2>/dev/null | wc -l)"
say queue "$(cat "/sys/block/$name/queue/discard_max_bytes") $(cat "/sys/block/$name/queue/discard_granularity") $(cat "/sys/block/$name/queue/write_zeroes_max_bytes") $(cat "/sys/block/$name/device/scsi_disk/"*/provisioning_mode)"
say cache "$(cat "/sys/block/$name/device/scsi_disk/"*/cache_type)"

attempt blkdiscard "$dev"
attempt mkfs.ext4 -q -F "$dev"
attempt mount -t ext4 "$dev" /mnt
attempt fio --ioengine=psync --rw=write --bs=1M --refill_buffers --thread --name=fill --directory=/mnt --size=160M
sync
say filled 160
rm /mnt/*
sync
attempt fstrim -v /mnt
attempt umount /mnt
attempt fsck.ext4 -fn "$dev"
say errors "$(dmesg | grep -c 'I/O error')"
