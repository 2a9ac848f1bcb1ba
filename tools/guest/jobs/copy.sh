# A whole disk's bytes to HOST and back onto another disk, over TCP. SOURCE, TARGET: the disks' serial numbers.
source=$(disk "$SOURCE") || die "no disk with serial $SOURCE"
target=$(disk "$TARGET") || die "no disk with serial $TARGET"
start=$(seconds)
attempt socat -u -b 262144 "OPEN:$source" "TCP4:$HOST:5000"
say seconds "send $start $(seconds)"
start=$(seconds)
attempt socat -u -b 262144 "OPEN:$source" "TCP6:[$HOST6]:5006"
say seconds "send6 $start $(seconds)"
start=$(seconds)
attempt socat -u -b 262144 "TCP4:$HOST:5001" "OPEN:$target"
say seconds "receive $start $(seconds)"
sync
say checksum-errors "$(checksum_errors)"
