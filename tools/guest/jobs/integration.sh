# What a host asks of its guest: the time, Debian's daemons for keys and freezing, a clean power-off. The disk of the serial
# number SERIAL is written to all the time.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
nic=$(nic) || die "no NIC"

# Whom the kernel starts when the host asks for it. [linux: kernel/reboot.c, orderly_poweroff]
cat >/sbin/poweroff <<'END'
#!/bin/sh
exec >/dev/console 2>&1
. /lib/guest.sh
kill "$(cat /run/writer)"
umount /mnt && say unmounted
say powers-off
exec /bin/poweroff -f
END
chmod 755 /sbin/poweroff

# The clock: wrong by years, until the driver comes anew and the host sets it.
for device in /sys/bus/vmbus/devices/*; do
  if [ "$(cat "$device/class_id")" = "{9527e630-d0ae-497b-adce-e80ab0175caf}" ]; then
    sync=${device##*/}
  fi
done
[ -n "$sync" ] || die "the host offers no time"
date -s @1000000000 >/dev/null
echo "$sync" >/sys/bus/vmbus/drivers/hv_utils/unbind || die "unbind"
[ "$(date +%s)" -lt 1000100000 ] || die "the clock was not wrong"
echo "$sync" >/sys/bus/vmbus/drivers/hv_utils/bind || die "bind"
for _ in $(seq 100); do
  [ "$(date +%s)" -gt 1700000000 ] && break
  usleep 100000
done
say clock "$(date +%s)"

hostname vmbusd-guest
echo "127.0.0.1 vmbusd-guest.example vmbusd-guest" >/etc/hosts
printf 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\n' >/etc/os-release
attempt ip address add 192.0.2.7/24 dev "$nic"
attempt ip link set "$nic" up

attempt mkfs.ext4 -q -F "$dev"
attempt mount "$dev" /mnt
beats() {
  n=0
  while :; do
    echo "$n" >/mnt/beat
    sync -f /mnt/beat
    n=$((n + 1))
    say beat "$n"
    usleep 200000
  done
}
beats &
echo $! >/run/writer

mkdir -p /var/lib/hyperv
# A record of the pool that is the guest's: a key and a value of fixed size. [linux: hv_kvp_daemon.c, struct kvp_record]
record() {
  printf '%s' "$1" | dd bs=512 conv=sync 2>/dev/null
  printf '%s' "$2" | dd bs=2048 conv=sync 2>/dev/null
}
record from-guest "grüße" >/var/lib/hyperv/.kvp_pool_1
attempt hv_kvp_daemon
attempt hv_vss_daemon
say daemons started
pool=/var/lib/hyperv/.kvp_pool_0
until grep -q from-host $pool; do usleep 100000; done
# Behind a text's NUL a record holds anything.
say told "$(tr '\0' '\n' <$pool | head -n 1) $(tail -c +513 $pool | tr '\0' '\n' | head -n 1)"
while [ -s $pool ]; do usleep 100000; done
say forgotten
sleep 600
die "nobody asked for a power-off"
