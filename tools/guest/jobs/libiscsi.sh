# libiscsi's tests of a target, against the disk's own node. SERIAL: the disk. FAMILIES: of tests. Each test is said with its
# outcome: passed, failed, or skipped where it found nothing to test.
dev=$(disk "$SERIAL") || die "no disk with serial $SERIAL"
modprobe sg
for generic in "/sys/block/${dev##*/}/device/scsi_generic/"*; do generic=/dev/${generic##*/}; done
for family in $FAMILIES; do
  # Without a terminal: it asks before it destroys data. Its status tells of the run, not of the tests.
  LD_LIBRARY_PATH=/libiscsi timeout 60 /libiscsi/iscsi-test-cu -d -v -t "ALL.$family" "$generic" </dev/null >>/tmp/tests 2>&1
  status=$?
  [ $status -le 1 ] || die "iscsi-test-cu ended with $status in $family: $(tail -n 3 /tmp/tests | tr '\n' ' ')"
done
awk '
  /^Suite: / { report(); suite = $2 }
  /^ *Test: / { report(); name = $2; outcome = "passed" }
  name != "" { text[lines++] = $0 }
  /\[SKIPPED\]/ && outcome == "passed" { outcome = "skipped" }
  /FAILED/ { outcome = "failed" }
  /^Run Summary/ { report() }
  function report(  i) {
    if (name != "") print "@@ test " outcome " " suite "." name
    for (i = 0; i < lines && i < 12 && outcome == "failed"; i++) print text[i]
    name = ""
    lines = 0
  }
  END { report() }
' /tmp/tests
say seconds "$(seconds)"
