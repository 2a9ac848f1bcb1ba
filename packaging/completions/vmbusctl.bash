# Completion of vmbusctl in bash. Names are asked of the running vmbusd.

_vmbusctl_partitions() {
  vmbusctl status 2>/dev/null | sed -n '2,$s/ .*//p'
}

# PARTITION/NIC of every NIC.
_vmbusctl_nics() {
  local partition
  for partition in $(_vmbusctl_partitions); do
    vmbusctl inspect "$partition/devices" 2>/dev/null |
      awk -v partition="$partition" '/^\// { name = substr($1, 2); sub(/:$/, "", name) }
        /^  type: nic$/ { print partition "/" name }'
  done
}

_vmbusctl() {
  local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}" command="" place=0 i
  local commands="status inspect top events config metrics add remove set resize upgrade shutdown freeze thaw key link log-level reload"
  case "$previous" in
    -s | --socket)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return
      ;;
  esac
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${COMP_WORDS[i]}" in
      -s | --socket | -d | --delay | -n | --rounds | --timeout) ((i++)) ;;
      -*) ;;
      *)
        if [ -z "$command" ]; then
          command="${COMP_WORDS[i]}"
        else
          ((place++))
        fi
        ;;
    esac
  done
  local choices=""
  if [[ "$word" == -* ]]; then
    choices="--socket --json --help --version"
    [ "$command" = top ] && choices+=" --delay --rounds"
    [ "$command" = events ] && choices+=" --follow"
    [ "$command" = shutdown ] && choices+=" --reboot --hibernate"
    [ "$command" = freeze ] && choices+=" --timeout"
    [ "$command" = key ] && choices+=" --delete"
  else
    case "$command:$place" in
      :0) choices="$commands" ;;
      config:0) choices="dump" ;;
      add:0) choices="$(_vmbusctl_partitions) name=" ;;
      add:1) choices="disk nic scsi socket=" ;;
      inspect:0 | remove:0 | set:0 | resize:0 | upgrade:0 | shutdown:0 | freeze:0 | thaw:0 | key:0) choices="$(_vmbusctl_partitions)" ;;
      link:0) choices="$(_vmbusctl_nics)" ;;
      link:1) choices="up down" ;;
      log-level:0) choices="debug info warning error" ;;
      add:*) choices="name= socket= io_threads= poll_us= nice= scsi.name= scsi.disk.lun= scsi.disk.path= nic.name= nic.backend= lun= path= backend= iops= rate=" ;;
      set:*) choices="iops= rate= burst=" ;;
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")
  [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
  return 0
}

complete -F _vmbusctl vmbusctl
