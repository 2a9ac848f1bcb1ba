#compdef vmbusctl
# Completion of vmbusctl in zsh. Names are asked of the running vmbusd.

_vmbusctl_partitions() {
  local -a names
  names=(${(f)"$(vmbusctl status 2>/dev/null | sed -n '2,$s/^\([^ ]\{1,\}\) .*/\1/p')"})
  compadd -a names
}

# PARTITION/NIC of every NIC.
_vmbusctl_nics() {
  local -a names
  local partition
  for partition in ${(f)"$(vmbusctl status 2>/dev/null | sed -n '2,$s/^\([^ ]\{1,\}\) .*/\1/p')"}; do
    names+=(${(f)"$(vmbusctl inspect $partition/devices 2>/dev/null |
      awk -v partition=$partition '/^\// { name = substr($1, 2); sub(/:$/, "", name) }
        /^  type: nic$/ { print partition "/" name }')"})
  done
  compadd -a names
}

_vmbusctl_keys() {
  compadd -S '' -- name= socket= io_threads= poll_us= scsi.name= scsi.disk.lun= scsi.disk.path= nic.name= nic.backend= lun= path= backend= iops= rate=
}

_vmbusctl() {
  local curcontext=$curcontext state line
  typeset -A opt_args
  local -a commands
  commands=(
    'status:list the partitions'
    'inspect:show a partition, or a part of it'
    'top:show what the channels do'
    'events:print what has happened to partitions'
    'config:print a configuration file that says what vmbusd serves now'
    'metrics:print the counters as Prometheus reads them'
    'add:add a partition, or a device to one'
    'remove:remove a partition, a device or a disk'
    "set:change a disk's limits"
    'resize:tell a guest that a disk has grown'
    "upgrade:replace a partition's worker process"
    'shutdown:have a guest power itself off'
    'freeze:have a guest hold its file systems'
    'thaw:have a frozen guest go on'
    'key:tell a guest a value for a key'
    "link:switch a NIC's link"
    'log-level:show the least level that is logged, or change it'
    'reload:have vmbusd read its configuration file again'
  )
  _arguments -C \
    "(-s --socket)"{-s,--socket}"[vmbusd's control socket]:socket:_files" \
    '--json[print JSON]' \
    '(- *)'{-h,--help}'[print a summary and exit]' \
    '(- *)--version[print the version and exit]' \
    '1:command:->command' '*::argument:->argument'
  case $state in
    command) _describe command commands ;;
    argument)
      case $words[1] in
        inspect | remove | upgrade | thaw) _arguments '--json[print JSON]' '1:partition:_vmbusctl_partitions' ;;
        top)
          _arguments '--json[print JSON]' \
            '(-d --delay)'{-d,--delay}'[time between two looks]:seconds' \
            '(-n --rounds)'{-n,--rounds}'[stop after so many]:number'
          ;;
        events) _arguments '--json[print JSON]' '(-f --follow)'{-f,--follow}'[and what happens from now on]' ;;
        config) _arguments '--json[print JSON]' '1:action:(dump)' ;;
        add)
          _arguments '--json[print JSON]' '1:partition or key:{ _vmbusctl_partitions; _vmbusctl_keys }' \
            '2:kind or key:{ compadd disk nic scsi; _vmbusctl_keys }' '*:key:_vmbusctl_keys'
          ;;
        set) _arguments '1:disk:_vmbusctl_partitions' '*:key:{ compadd -S "" -- iops= rate= burst= }' ;;
        resize) _arguments '1:disk:_vmbusctl_partitions' '2:size' ;;
        shutdown)
          _arguments '(--hibernate)--reboot[restart instead]' '(--reboot)--hibernate[hibernate instead]' \
            '1:partition:_vmbusctl_partitions'
          ;;
        freeze) _arguments '--timeout[time until it is thawed in any case]:seconds' '1:partition:_vmbusctl_partitions' ;;
        key) _arguments '--delete[have it forget the key]' '1:partition:_vmbusctl_partitions' '2:key' '3:value' ;;
        link) _arguments '1:NIC:_vmbusctl_nics' '2:state:(up down)' ;;
        log-level) _arguments '1:level:(debug info warning error)' ;;
        status) _arguments '--json[print JSON]' ;;
      esac
      ;;
  esac
}

_vmbusctl "$@"
