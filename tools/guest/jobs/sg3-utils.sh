# sg3-utils read each page and run each command. SERIAL: the disk. Each command ends with the status that it must have and
# prints nothing of trouble.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
modprobe sg

# try LABEL STATUS COMMAND...: the command ends with that status. [man: sg3_utils(8), EXIT STATUS]
try() {
  label=$1
  wanted=$2
  shift 2
  # A program takes its time in an emulated root partition: no other is started beside it.
  echo "== $label: $*" >>/tmp/all
  "$@" >>/tmp/all 2>&1
  status=$?
  [ "$status" = "$wanted" ] || die "$label: $* gave $status, not $wanted: $(tail -n 4 /tmp/all | tr '\n' ' ')"
  tried=$((${tried:-0} + 1))
}
good() {
  label=$1
  shift
  try "$label" 0 "$@"
}

# What the unit says of itself.
good inquiry sg_inq "$dev"
good vpd sg_vpd -a "$dev"
good modes sg_modes -a "$dev"
good "modes that can change" sg_modes -a -c 1 "$dev"
good logs sg_logs -a "$dev"
good "log pages" sg_logs -p 0,0xff "$dev"
good readcap sg_readcap "$dev"
good "readcap 16" sg_readcap -16 "$dev"
good opcodes sg_opcodes "$dev"
good "opcodes with time-outs" sg_opcodes -R "$dev"
for opcode in 0x89 0x9e,0x12; do good "opcode $opcode" sg_opcodes -o $opcode "$dev"; done
good "tasks, extended" sg_opcodes -t -q "$dev"
for select in 0 1; do good "luns $select" sg_luns -s $select "$dev"; done
good sense sg_requests "$dev"
good ready sg_turs -n 10 "$dev"

# What it does with its medium.
good verify sg_verify --lba=0 --count=2048 "$dev"
head -c 512 /dev/urandom >/tmp/block
good "write same" sg_write_same --in=/tmp/block --lba=8 --num=16 "$dev"
good "write same 10" sg_write_same --10 --in=/tmp/block --lba=8 --num=16 "$dev"
good "verify one block" sg_verify --lba=8 --count=16 --bytchk=3 --in=/tmp/block --nblen=512 "$dev"
good "verify 16" sg_verify --16 --lba=8 --count=1 --bytchk=1 --in=/tmp/block --nblen=512 "$dev"
cat /tmp/block /dev/zero | head -c 1024 >/tmp/pair
good "compare and write" sg_compare_and_write --in=/tmp/pair --lba=8 --num=1 "$dev"
try miscompare 14 sg_compare_and_write --in=/tmp/pair --lba=8 --num=1 --quiet "$dev"
good "write and verify 10" sg_raw -s 512 -i /tmp/block "$dev" 2e 02 00 00 00 10 00 00 01 00
good "write and verify 12" sg_raw -s 512 -i /tmp/block "$dev" ae 02 00 00 00 10 00 00 00 01 00 00
good "write and verify 16" sg_raw -s 512 -i /tmp/block "$dev" 8e 02 00 00 00 00 00 00 00 10 00 00 00 01 00 00
good "synchronize cache" sg_sync "$dev"
good "synchronize cache 16" sg_sync --16 "$dev"
good "lba status" sg_get_lba_status --lba=0 "$dev"
good unmap sg_unmap --lba=8 --num=16 "$dev"
good "lba status, unmapped" sg_get_lba_status --lba=8 "$dev"
tail -n 5 /tmp/all | grep -q -i deallocated || die "what was unmapped is mapped: $(tail -n 5 /tmp/all | tr '\n' ' ')"
good "write same, unmap" sg_write_same --unmap --lba=0 --num=2048 "$dev"
good "write same, no data" sg_write_same --ndob --lba=0 --num=2048 "$dev"
good "prevent" sg_prevent "$dev"
good "allow" sg_prevent --allow "$dev"
good stop sg_start --stop "$dev"
try "ready when stopped" 2 sg_turs "$dev"
good start sg_start --start "$dev"
good "ready again" sg_turs "$dev"
good "cache off" sg_wr_mode -p 8 -c 08,12,00,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0 "$dev"
good "cache on" sg_wr_mode -p 8 -c 08,12,04,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0 "$dev"

# Reservations, kept and not.
good "pr capabilities" sg_persist -n -i -c "$dev"
good "pr register" sg_persist -n --out --register-ignore --param-sark=7 --param-aptpl "$dev"
for type in 1 3 5 6 7 8; do
  good "pr reserve $type" sg_persist -n --out --reserve --param-rk=7 --prout-type=$type "$dev"
  good "pr release $type" sg_persist -n --out --release --param-rk=7 --prout-type=$type "$dev"
done
good "pr keys" sg_persist -n -i -k "$dev"
good "pr reserve" sg_persist -n --out --reserve --param-rk=7 --prout-type=5 "$dev"
good "pr reservation" sg_persist -n -i -r "$dev"
good "pr full" sg_persist -n -i -s "$dev"
good "pr preempt" sg_persist -n --out --preempt --param-rk=7 --param-sark=7 --prout-type=6 "$dev"
good "pr clear" sg_persist -n --out --clear --param-rk=7 "$dev"

# Resets: the next command hears of each.
for kind in device bus host; do
  good "reset $kind" sg_reset --$kind "$dev"
  sg_turs "$dev" >/dev/null 2>&1
  good "after reset $kind" sg_verify --lba=0 --count=8 "$dev"
done

attempt blkdiscard "$dev"
attempt blkdiscard --zeroout -l 1M "$dev"
say tried "$tried"
grep -i -E 'malformed|too short|truncated|unexpected|warning' /tmp/all | while read -r line; do say complaint "$line"; done
say seconds "$(seconds)"
