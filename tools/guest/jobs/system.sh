# The facts of a full system: how systemd finds it, and that its root and its network are what vmbusd gave.
say kernel "$(uname -r)"
say state "$(systemctl is-system-running --wait)"
systemctl --failed --plain --no-legend | while read -r unit; do
  say unit "$unit"
done
say startup "$(systemd-analyze time | head -n 1)"
root=$(findmnt -n -o SOURCE /)
name=$(lsblk -n -d -o PKNAME "$root")
driver=$(readlink -f "/sys/block/$name/device/../../../driver")
say root "$root $(serial_of "$name") ${driver##*/}"
nic=$(nic) || die "no NIC on hv_netvsc"
say nic "$nic $(cat "/sys/class/net/$nic/address") $(cat "/sys/class/net/$nic/mtu")"
kernel_log
