# The payload's side of the console protocol (bench/protocol.py), for /bin/sh. A payload sources this,
# defines what it needs of prepare, round and finish, and calls isomark_serve. Only built-in commands
# are used here: what a payload forks is its own affair, and shows in its memory and its boot.
#
#   prepare   before ready; what it starts is running when it returns
#   round     one round; calls figure for each metric
#   finish    before the payload ends, however it ends, unless it is killed

cpus=${ISOMARK_CPUS:-1}
scratch=${ISOMARK_SCRATCH:-/isomark/scratch}
newline='
'

prepare() { :; }
finish() { :; }
round() { fail "this workload has no rounds"; }

# Answer commands until the host says quit or goes away.
isomark_serve() {
    trap isomark_end TERM
    prepare
    say ready
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            "ping "*) say "pong ${line#ping }" ;;
            "round "*) isomark_round "${line#round }" ;;
            quit) break ;;
            "") ;;
            *) fail "no such command: $line" ;;
        esac
    done
    isomark_end
}

isomark_round() {
    figures=
    say "round $1 begin"
    round "$1"
    say "round $1 end {$figures}"
}

isomark_end() {
    trap '' TERM
    finish
    exit 0
}

# One protocol line, in one write.
say() { printf 'isomark %s\n' "$1"; }

# Give up: the last line of the text is the reason.
fail() {
    reason=$1
    while [ "$reason" != "${reason%"$newline"}" ]; do reason=${reason%"$newline"}; done
    printf 'isomark error %.400s\n' "${reason##*"$newline"}"
    trap '' TERM
    finish
    exit 1
}

# figure NAME NUMBER: one metric of the round at hand. The tool's output is the third argument, for the error.
figure() {
    case $2 in
        "" | *[!0-9.]* | *.*.* | .* | *.) fail "$1 is not in the output: ${3:-$2}" ;;
    esac
    figures="$figures${figures:+, }\"$1\": $2"
}

# The length of a round in whole seconds, rounded up: seconds; and in milliseconds: milliseconds.
round_length() {
    length=${ISOMARK_ROUND_SECONDS:-1}
    case $length in
        "" | *[!0-9.]* | *.*.* | .* | *. | 0[0-9]*) fail "ISOMARK_ROUND_SECONDS is $length" ;;
    esac
    whole=${length%%.*}
    fraction=
    [ "$whole" = "$length" ] || fraction=${length#*.}
    fraction=${fraction}000
    fraction=${fraction%"${fraction#???}"}
    milliseconds=$((whole * 1000 + 1$fraction - 1000))
    [ "$milliseconds" -gt 0 ] || fail "ISOMARK_ROUND_SECONDS is $length"
    seconds=$(((milliseconds + 999) / 1000))
}
