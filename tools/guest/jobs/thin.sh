# What a thin disk tells and does. SERIAL: the disk. sg3-utils read each page, write, compare, reserve and reset; then ext4 is
# filled, emptied and trimmed.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
name=${dev##*/}
modprobe sg
kernel_log
say attention "$(dmesg | grep -c 'Power-on or device reset occurred')"
host=$(readlink -f "/sys/block/$name/device/../../..")
say channels "$(ls -d "${host%/host*}"/channels/* 2>/dev/null | wc -l)"
say queue "$(cat "/sys/block/$name/queue/discard_max_bytes") $(cat "/sys/block/$name/queue/discard_granularity") $(cat "/sys/block/$name/queue/write_zeroes_max_bytes") $(cat "/sys/block/$name/device/scsi_disk/"*/provisioning_mode)"
say cache "$(cat "/sys/block/$name/device/scsi_disk/"*/cache_type)"

# try LABEL STATUS COMMAND...: the command ends with that status.
try() {
  label=$1
  wanted=$2
  shift 2
  "$@" >/tmp/out 2>&1
  status=$?
  say sg "$label $status"
  [ "$status" = "$wanted" ] || die "$label: $* gave $status, not $wanted: $(head -c 400 /tmp/out | tr '\n' ' ')"
}
try inquiry 0 sg_inq "$dev"
for page in 0x00 0x80 0x83 0x86 0xb0 0xb1 0xb2; do try "vpd$page" 0 sg_vpd -p $page "$dev"; done
try modes 0 sg_modes -a "$dev"
try readcap 0 sg_readcap -16 "$dev"
try opcodes 0 sg_opcodes "$dev"
try opcodes-one 0 sg_opcodes -o 0x42 "$dev"
try tasks 0 sg_opcodes -t "$dev"
try luns 0 sg_luns "$dev"
try verify 0 sg_verify --lba=0 --count=2048 "$dev"
head -c 512 /dev/urandom >/tmp/block
try write-same 0 sg_write_same --in=/tmp/block --lba=8 --num=16 "$dev"
try write-same-10 0 sg_write_same --10 --in=/tmp/block --lba=8 --num=16 "$dev"
try verify-one-block 0 sg_verify --lba=8 --count=16 --bytchk=3 --in=/tmp/block --nblen=512 "$dev"
cat /tmp/block /dev/zero | head -c 1024 >/tmp/pair
try compare-and-write 0 sg_compare_and_write --in=/tmp/pair --lba=8 --num=1 "$dev"
try miscompare 14 sg_compare_and_write --in=/tmp/pair --lba=8 --num=1 --quiet "$dev"
try lba-status 0 sg_get_lba_status --lba=0 "$dev"
say status "$(tr '\n' ';' </tmp/out)"
try unmap 0 sg_unmap --lba=8 --num=16 "$dev"
try unmapped 0 sg_get_lba_status --lba=8 "$dev"
try write-same-unmap 0 sg_write_same --unmap --lba=0 --num=2048 "$dev"
try pr-capabilities 0 sg_persist -n -i -c "$dev"
try pr-register 0 sg_persist -n --out --register-ignore --param-sark=7 "$dev"
try pr-reserve 0 sg_persist -n --out --reserve --param-rk=7 --prout-type=5 "$dev"
try pr-keys 0 sg_persist -n -i -k "$dev"
try pr-reservation 0 sg_persist -n -i -r "$dev"
try pr-full 0 sg_persist -n -i -s "$dev"
try pr-clear 0 sg_persist -n --out --clear --param-rk=7 "$dev"
try reset-lun 0 sg_reset --device "$dev"
try reset-bus 0 sg_reset --bus "$dev"
try reset-host 0 sg_reset --host "$dev"
sg_verify --lba=0 --count=8 "$dev" >/dev/null 2>&1 # hears of the reset
try after-reset 0 sg_verify --lba=0 --count=8 "$dev"

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
