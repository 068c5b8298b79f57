/*
 * Runs jobs round by round and prints what each cost; the instrument under `hack/bench`.
 *
 *     bench PLAN ROUNDS WARMUP SETTLE_US ERRORS
 *
 * PLAN is a text file of tab-separated lines:
 *
 *     job    NAME            a job begins; the lines up to the next `job` are its steps
 *     run    ARGV...         timed, from before the spawn to the end of the process; must exit 0
 *     reap                   not timed: wait for everything the commands left running
 *     clean  ARGV...         not timed, only after a failed step, result ignored
 *
 * Each round runs every job once, forwards and backwards by turns, so that figures of one
 * round can be compared in pairs while the machine drifts, and no job always follows the same
 * one. WARMUP rounds go before and are not printed. SETTLE_US microseconds pass before each job, so
 * that the kernel's deferred work for the last container (its network namespace) is not
 * charged to the next job. A job that fails GIVE_UP times without one success is dropped, and
 * one that hangs for TIMEOUT_S before its first success at once. SIGTERM ends the program after the current job.
 *
 * Prints per job and round: round, job, microseconds of all `run` steps together, largest
 * ru_maxrss (KiB) of any process of the job, `ok` or `failed`. ERRORS is a directory; the
 * standard error of the last failure of job NAME is left there as NAME.
 *
 * In C and small, because a process starts with the peak memory of the one that spawned it
 * (getrusage counts the image before execve), and because spawning from a large process is slow.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_JOBS = 64, MAX_STEPS = 8, MAX_ARGS = 24, GIVE_UP = 5, TIMEOUT_S = 5 };

enum kind { RUN, REAP, CLEAN };

struct step {
    enum kind kind;
    char *argv[MAX_ARGS + 1];
};

struct job {
    char *name;
    struct step steps[MAX_STEPS];
    int step_count, failures;
    bool worked;
};

extern char **environ;
static struct job jobs[MAX_JOBS];
static int job_count;
static volatile sig_atomic_t timed_out, asked_to_end;

static void die(const char *what)
{
    dprintf(STDERR_FILENO, "bench: %s: %s\n", what, errno ? strerror(errno) : "malformed");
    exit(2);
}

static void on_alarm(int signal)
{
    (void)signal;
    timed_out = 1;
}

static void on_term(int signal)
{
    (void)signal;
    asked_to_end = 1;
}

/* The timer repeats, so that a signal between the test and the wait is not lost. */
static void set_timeout(int seconds)
{
    struct itimerval timer = { .it_value.tv_sec = seconds, .it_interval.tv_sec = seconds ? 1 : 0 };
    timed_out = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void read_plan(const char *path)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t size = 0;

    if (!file)
        die(path);
    errno = 0;
    while (getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *rest = strdup(line), *word = strsep(&rest, "\t");
        if (!strcmp(word, "job")) {
            if (job_count == MAX_JOBS || !rest)
                die(path);
            jobs[job_count++].name = rest;
            continue;
        }
        struct job *job = &jobs[job_count - 1];
        if (job_count == 0 || job->step_count == MAX_STEPS)
            die(path);
        struct step *step = &job->steps[job->step_count++];
        if (!strcmp(word, "run"))
            step->kind = RUN;
        else if (!strcmp(word, "clean"))
            step->kind = CLEAN;
        else if (!strcmp(word, "reap"))
            step->kind = REAP;
        else
            die(path);
        for (int i = 0; rest; i++) {
            if (i == MAX_ARGS)
                die(path);
            step->argv[i] = strsep(&rest, "\t");
        }
        if (step->kind != REAP && !step->argv[0])
            die(path);
    }
    free(line);
    fclose(file);
}

static void note_memory(const struct rusage *usage, long *peak_kib)
{
    if (usage->ru_maxrss > *peak_kib)
        *peak_kib = usage->ru_maxrss;
}

/* Runs one command to its end and adds its time; says on standard error why it is not a success. */
static bool run(char **argv, double *us, long *peak_kib)
{
    struct rusage usage;
    int status;
    pid_t pid;

    set_timeout(TIMEOUT_S);
    double start = now_us();
    int error = posix_spawn(&pid, argv[0], NULL, NULL, argv, environ);
    if (error) {
        dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(error));
        return false;
    }
    while (wait4(pid, &status, 0, &usage) < 0)
        if (timed_out)
            kill(pid, SIGKILL);
    *us += now_us() - start;
    bool late = timed_out;
    set_timeout(0);
    note_memory(&usage, peak_kib);
    if (late)
        dprintf(STDERR_FILENO, "no end after %d seconds\n", TIMEOUT_S);
    else if (WIFSIGNALED(status))
        dprintf(STDERR_FILENO, "killed by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        dprintf(STDERR_FILENO, "exit status %d\n", WEXITSTATUS(status));
    return !late && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Waits for all children: this process is the subreaper, so payloads become its own. */
static bool reap(long *peak_kib)
{
    struct rusage usage;

    set_timeout(TIMEOUT_S);
    while (!timed_out) {
        if (wait4(-1, NULL, 0, &usage) > 0)
            note_memory(&usage, peak_kib);
        else if (errno == ECHILD)
            break;
    }
    bool late = timed_out;
    set_timeout(0);
    if (late)
        dprintf(STDERR_FILENO, "the payload did not end within %d seconds\n", TIMEOUT_S);
    return !late;
}

/* Ends whatever a failed job left behind. Grandchildren come to us as their parents go. */
static void kill_children(void)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    for (int tries = 0; tries < 100; tries++) {
        FILE *file = fopen(path, "re");
        int pid;
        if (!file)
            return;
        while (fscanf(file, "%d", &pid) == 1)
            kill(pid, SIGKILL);
        fclose(file);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD)
            return;
        usleep(10000);
    }
}

static bool run_job(struct job *job, double *us, long *peak_kib)
{
    bool ok = true;
    double start = now_us();

    for (int i = 0; ok && i < job->step_count; i++) {
        struct step *step = &job->steps[i];
        if (step->kind == RUN)
            ok = run(step->argv, us, peak_kib);
        else if (step->kind == REAP)
            ok = reap(peak_kib);
    }
    if (ok)
        job->worked = true;
    else
        job->failures += now_us() - start < TIMEOUT_S * 1e6 ? 1 : GIVE_UP;
    return ok;
}

static void clean(struct job *job, int null)
{
    double us = 0;
    long peak_kib = 0;

    dup2(null, STDERR_FILENO);
    for (int i = 0; i < job->step_count; i++)
        if (job->steps[i].kind == CLEAN)
            run(job->steps[i].argv, &us, &peak_kib);
    kill_children();
    /* Again, for runtimes that did not dare while the payload lived. */
    for (int i = 0; i < job->step_count; i++)
        if (job->steps[i].kind == CLEAN)
            run(job->steps[i].argv, &us, &peak_kib);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: bench PLAN ROUNDS WARMUP SETTLE_US ERRORS\n");
        return 2;
    }
    int rounds = atoi(argv[2]), warmup = atoi(argv[3]);
    useconds_t settle = (useconds_t)atoi(argv[4]);
    read_plan(argv[1]);
    int errors = open(argv[5], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (errors < 0 || null < 0 || out < 0)
        die(argv[5]);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
    sigaction(SIGTERM, &(struct sigaction){ .sa_handler = on_term, .sa_flags = SA_RESTART }, NULL);
    /* Set here once, so that the spawns need no file actions. */
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);

    for (int round = 1 - warmup; round <= rounds; round++) {
        for (int i = 0; i < job_count && !asked_to_end; i++) {
            struct job *job = &jobs[round % 2 ? i : job_count - 1 - i];
            double us = 0;
            long peak_kib = 0;

            if (!job->worked && job->failures >= GIVE_UP)
                continue;
            int log = openat(errors, ".last", O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
            if (log < 0 || dup2(log, STDERR_FILENO) < 0)
                return 2;
            close(log);
            usleep(settle);
            bool ok = run_job(job, &us, &peak_kib);
            if (!ok) {
                renameat(errors, ".last", errors, job->name);
                clean(job, null);
            }
            if (round > 0)
                dprintf(out, "%d\t%s\t%.1f\t%ld\t%s\n", round, job->name, us, peak_kib, ok ? "ok" : "failed");
        }
    }
    return 0;
}
