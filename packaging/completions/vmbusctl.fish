# Completion of vmbusctl in fish. Names are asked of the running vmbusd.

function __vmbusctl_partitions
    vmbusctl status 2>/dev/null | sed -n '2,$s/^\([^ ]\{1,\}\) .*/\1/p'
end

# PARTITION/NIC of every NIC.
function __vmbusctl_nics
    for partition in (__vmbusctl_partitions)
        vmbusctl inspect $partition/devices 2>/dev/null |
            awk -v partition=$partition '/^\// { name = substr($1, 2); sub(/:$/, "", name) }
              /^  type: nic$/ { print partition "/" name }'
    end
end

# The words before the one that is typed, without options and their values.
function __vmbusctl_words
    set --local value no
    for word in (commandline --tokenize --cut-at-cursor --current-process)
        if test $value = yes
            set value no
            continue
        end
        switch $word
            case -s --socket -d --delay -n --rounds --timeout
                set value yes
            case '-*'
            case '*'
                echo $word
        end
    end
end

# Whether one of some commands was given, with so many words behind it before the one that is typed.
function __vmbusctl_at --argument-names place
    set --local words (__vmbusctl_words)
    test (count $words) -eq (math $place + 2); and contains -- $words[2] $argv[2..]
end

function __vmbusctl_command
    test (count (__vmbusctl_words)) -eq 1
end

complete -c vmbusctl -f
complete -c vmbusctl -s s -l socket -r -F -d "vmbusd's control socket"
complete -c vmbusctl -l json -d 'Print JSON'
complete -c vmbusctl -s h -l help -d 'Print a summary and exit'
complete -c vmbusctl -l version -d 'Print the version and exit'

complete -c vmbusctl -n __vmbusctl_command -a status -d 'List the partitions'
complete -c vmbusctl -n __vmbusctl_command -a inspect -d 'Show a partition, or a part of it'
complete -c vmbusctl -n __vmbusctl_command -a top -d 'Show what the channels do'
complete -c vmbusctl -n __vmbusctl_command -a events -d 'Print what has happened to partitions'
complete -c vmbusctl -n __vmbusctl_command -a config -d 'Print a configuration file of what is served now'
complete -c vmbusctl -n __vmbusctl_command -a metrics -d 'Print the counters as Prometheus reads them'
complete -c vmbusctl -n __vmbusctl_command -a add -d 'Add a partition, or a device to one'
complete -c vmbusctl -n __vmbusctl_command -a remove -d 'Remove a partition, a device or a disk'
complete -c vmbusctl -n __vmbusctl_command -a set -d "Change a disk's limits"
complete -c vmbusctl -n __vmbusctl_command -a resize -d 'Tell a guest that a disk has grown'
complete -c vmbusctl -n __vmbusctl_command -a upgrade -d "Replace a partition's worker process"
complete -c vmbusctl -n __vmbusctl_command -a shutdown -d 'Have a guest power itself off'
complete -c vmbusctl -n __vmbusctl_command -a freeze -d 'Have a guest hold its file systems'
complete -c vmbusctl -n __vmbusctl_command -a thaw -d 'Have a frozen guest go on'
complete -c vmbusctl -n __vmbusctl_command -a key -d 'Tell a guest a value for a key'
complete -c vmbusctl -n __vmbusctl_command -a link -d "Switch a NIC's link"
complete -c vmbusctl -n __vmbusctl_command -a log-level -d 'Show the least level that is logged, or change it'
complete -c vmbusctl -n __vmbusctl_command -a reload -d 'Have vmbusd read its configuration file again'

complete -c vmbusctl -n '__vmbusctl_at 0 add inspect remove set resize upgrade shutdown freeze thaw key' -a '(__vmbusctl_partitions)'
complete -c vmbusctl -n '__vmbusctl_at 0 link' -a '(__vmbusctl_nics)'
complete -c vmbusctl -n '__vmbusctl_at 1 link' -a 'up down'
complete -c vmbusctl -n '__vmbusctl_at 0 log-level' -a 'debug info warning error'
complete -c vmbusctl -n '__vmbusctl_at 0 config' -a dump
complete -c vmbusctl -n '__vmbusctl_at 1 add' -a 'disk nic scsi'
complete -c vmbusctl -n '__fish_seen_subcommand_from set' -a 'iops= rate= burst='
complete -c vmbusctl -n '__fish_seen_subcommand_from add' \
    -a 'name= socket= io_threads= poll_us= scsi.name= scsi.disk.lun= scsi.disk.path= nic.name= nic.backend= lun= path= backend= iops= rate='
complete -c vmbusctl -n '__fish_seen_subcommand_from top' -s d -l delay -x -d 'Seconds between two looks'
complete -c vmbusctl -n '__fish_seen_subcommand_from top' -s n -l rounds -x -d 'Stop after so many'
complete -c vmbusctl -n '__fish_seen_subcommand_from events' -s f -l follow -d 'And what happens from now on'
complete -c vmbusctl -n '__fish_seen_subcommand_from shutdown' -l reboot -d 'Restart instead'
complete -c vmbusctl -n '__fish_seen_subcommand_from shutdown' -l hibernate -d 'Hibernate instead'
complete -c vmbusctl -n '__fish_seen_subcommand_from freeze' -l timeout -x -d 'Seconds until it is thawed in any case'
complete -c vmbusctl -n '__fish_seen_subcommand_from key' -l delete -d 'Have it forget the key'
