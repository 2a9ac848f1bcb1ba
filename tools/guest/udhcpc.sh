#!/bin/sh
# What the guest's DHCP client calls with what it was given. [busybox: networking/udhcp/dhcpc.c, environment of the script]
case $1 in
  deconfig) ip -4 address flush dev "$interface"; ip link set "$interface" up ;;
  bound | renew)
    ip -4 address replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip -4 route replace default via "$router" dev "$interface"
    ;;
esac
