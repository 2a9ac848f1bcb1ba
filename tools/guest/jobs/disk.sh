# The verified disk: partition table, file system, random files, and their checksums after a remount.
# SERIAL: the disk. MIB: how much data. The second partition is left to fio.sh.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
name=${dev##*/}
say disk "$(cat "/sys/block/$name/device/vendor")|$(cat "/sys/block/$name/device/model")|$(serial_of "$name")"
driver=$(readlink -f "/sys/block/$name/device/../../../driver")
say driver "${driver##*/}"
kernel_log

say step "partition table"
printf 'label: gpt\nsize=%dM\nsize=+\n' $((MIB * 3 / 2 + 64)) >/tmp/table
attempt sfdisk -q --wipe always "$dev" </tmp/table
attempt test -b "${dev}1"
say step "mkfs.ext4"
attempt mkfs.ext4 -q -F -E nodiscard "${dev}1"
attempt mount -t ext4 "${dev}1" /mnt

say step "$MIB MiB of random files"
start=$(seconds)
# One sixteenth of the data in small files, the rest in fifteen large ones. fio, because the kernel's random numbers are slow
# to make under emulation; its seed is one of them.
mkdir /mnt/small
attempt fio --ioengine=psync --rw=write --bs=64k --refill_buffers --randseed="$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')" \
  --fallocate=none --file_service_type=sequential --thread \
  --name=large --directory=/mnt --filename_format='large-$filenum' --nrfiles=15 --filesize=$((MIB * 65536)) \
  --name=small --directory=/mnt/small --filename_format='$filenum' --nrfiles="$MIB" --filesize=64k
sync
say seconds "write $start $(seconds)"
(cd /mnt && find . -type f ! -name SHA256SUMS | sort | xargs sha256sum) >/tmp/before
say checksums "$(wc -l </tmp/before) $(sha256sum </tmp/before | cut -d ' ' -f 1)"
attempt umount /mnt

say step "fsck.ext4 -fn"
attempt fsck.ext4 -fn "${dev}1"
say fsck clean
say step "mount again, compare"
echo 3 >/proc/sys/vm/drop_caches
attempt mount -t ext4 "${dev}1" /mnt
start=$(seconds)
(cd /mnt && sha256sum -c /tmp/before) >/tmp/compare 2>&1 || die "checksums differ: $(grep -v ': OK' /tmp/compare | head -3)"
say seconds "compare $start $(seconds)"
say compare equal
attempt umount /mnt
