# hack/bench: the table. Input 1: runtime, program, version. Input 2: what hack/bench.c printed.

function median(list, count,    i, j, value, sorted) {
    if (count == 0)
        return ""
    for (i = 1; i <= count; i++) {
        value = list[i] + 0
        for (j = i - 1; j >= 1 && sorted[j] > value; j--)
            sorted[j + 1] = sorted[j]
        sorted[j + 1] = value
    }
    return (sorted[int((count + 1) / 2)] + sorted[int(count / 2) + 1]) / 2
}

function time_of(job,    list, count, r) {
    for (r = 1; r <= rounds; r++)
        if ((job, r) in us)
            list[++count] = us[job, r] / 1000
    return median(list, count)
}

# Median over the rounds in which both worked; op is "/" or "-" (in ms).
function pairs(job, op, other,    list, count, r) {
    for (r = 1; r <= rounds; r++)
        if ((job, r) in us && (other, r) in us)
            list[++count] = op == "/" ? us[job, r] / us[other, r] : (us[job, r] - us[other, r]) / 1000
    return median(list, count)
}

function form(format, value) {
    return value == "" ? "-" : sprintf(format, value)
}

function row(title, aim, floor, p, c, r) {
    printf "%-38s %8s %14s %14s %14s%s\n", title, floor, p, c, r, aim == "" ? "" : sprintf(" %9s", aim)
}

function time_row(title, kind, floor,    i, cell) {
    for (i = 1; i <= runtimes; i++)
        cell[i] = form("%.2f", time_of(runtime[i] "." kind))
    row(title, "", floor, cell[1], cell[2], cell[3])
}

# other is a whole job name, or ".kind" for crun's job of that kind.
function ratio_row(title, kind, other, aim,    i, cell) {
    for (i = 1; i <= runtimes; i++)
        cell[i] = form("%.2f", pairs(runtime[i] "." kind, "/", other))
    row(title, aim, "", cell[1], cell[2], cell[3])
}

function difference_row(title, kind, other, aim,    i, cell) {
    for (i = 1; i <= runtimes; i++)
        cell[i] = form("%+.2f", pairs(runtime[i] "." kind, "-", substr(other, 1, 1) == "." ? runtime[i] other : other))
    row(title, aim, "", cell[1], cell[2], cell[3])
}

BEGIN { FS = "\t" }

FILENAME == ARGV[1] {
    runtime[++runtimes] = $1
    program[runtimes] = $2
    version[runtimes] = $3
    next
}

{
    split($2, part, ".")
    if ($1 > rounds)
        rounds = $1
    runs[part[1]]++
    if ($5 != "ok") {
        failed[part[1]]++
        next
    }
    us[$2, $1] = $3
    if ($4 > peak[part[1]])
        peak[part[1]] = $4
}

END {
    row("", "pelagos:", "floor", program[1], program[2], program[3])
    row("", "at most", "", version[1], version[2], version[3])
    time_row("run /bin/true, ms", "run", form("%.2f", time_of("floor.run")))
    time_row("  with seccomp", "run+seccomp")
    time_row("create + start + delete, ms", "csd")
    time_row("  with seccomp", "csd+seccomp")
    time_row("state, ms", "state", form("%.2f", time_of("true.start")) "*")
    time_row("  with seccomp", "state+seccomp")
    ratio_row("run / floor", "run", "floor.run", "2.00")
    ratio_row("run / crun's", "run", "crun.run", "0.60")
    ratio_row("  with seccomp", "run+seccomp", "crun.run+seccomp")
    ratio_row("create + start + delete / crun's", "csd", "crun.csd")
    ratio_row("  with seccomp", "csd+seccomp", "crun.csd+seccomp")
    ratio_row("state / crun's", "state", "crun.state")
    difference_row("seccomp adds to run, once cached, ms", "run+seccomp", ".run", "0.50")
    difference_row("state above starting a process, ms", "state", "true.start", "1.00")
    for (i = 1; i <= runtimes; i++) {
        memory[i] = form("%.1f", peak[runtime[i]] ? peak[runtime[i]] / 1024 : "")
        drops[i] = runs[runtime[i]] ? (failed[runtime[i]] + 0) "/" runs[runtime[i]] : "-"
    }
    row("peak memory, MiB", form("%.1f", peak["crun"] ? peak["crun"] / 1024 : ""),
        form("%.1f", peak["floor"] / 1024), memory[1], memory[2], memory[3])
    row("failed runs, dropped", "", (failed["floor"] + 0) "/" runs["floor"], drops[1], drops[2], drops[3])
    print ""
    print "* starting any process: a static C program that returns 0"
}
