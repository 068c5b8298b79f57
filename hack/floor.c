/*
 * The floor that `hack/bench` measures runtimes against: the kernel work that no
 * runtime can avoid for a bundle, and nothing else.
 *
 *     floor ROOTFS CGROUP
 *
 * Makes the cgroup CGROUP (a directory of a cgroup2 mount, or "-" for none), clones once
 * into it with the bundle's namespaces, makes the bundle's mounts, default devices and
 * links, masked and read-only paths, pivots, executes the payload, waits for it and removes
 * the cgroup. It reads no JSON: hack/bench turns config.json into the header that is
 * included on the compiler's command line, which defines
 *
 *     NAMESPACES  CLONE_NEW* flags
 *     MOUNTS      { type, source, destination, MS_* flags, data }, ...
 *     MASKED      path, ...
 *     READONLY    path, ...
 *     ARGS, ENV   string, ...
 *     ROOT_FLAGS  MS_RDONLY or 0
 *
 * Left out, because the kernel does not ask for it: path checks, capabilities, rlimits,
 * hostname, the loopback device, device rules, seccomp, state on disk. Never run it on a
 * root file system that you do not trust: it follows every link.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

struct mount_op {
    const char *type, *source, *destination;
    unsigned long flags;
    const char *data;
};

static const struct mount_op mounts[] = { MOUNTS { 0 } };
static const char *const masked[] = { MASKED NULL };
static const char *const readonly[] = { READONLY NULL };
static char *const args[] = { ARGS NULL };
static char *const env[] = { ENV NULL };

/* The devices that the runtime specification asks for, in every container. */
static const struct { const char *path; unsigned minor_of_mem; } mem_devices[] = {
    { "/dev/null", 3 }, { "/dev/zero", 5 }, { "/dev/full", 7 },
    { "/dev/random", 8 }, { "/dev/urandom", 9 },
};
static const struct { const char *target, *path; } links[] = {
    { "/proc/self/fd", "/dev/fd" }, { "/proc/self/fd/0", "/dev/stdin" },
    { "/proc/self/fd/1", "/dev/stdout" }, { "/proc/self/fd/2", "/dev/stderr" },
    { "pts/ptmx", "/dev/ptmx" }, { "/proc/kcore", "/dev/core" },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void must(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        _exit(1);
    }
}

static void enter_rootfs(const char *rootfs)
{
    must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "make mounts slaves");
    must(mount(rootfs, rootfs, NULL, MS_BIND | MS_REC, NULL), rootfs);
    must(chdir(rootfs), rootfs);
    must((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "detach the old root");
}

static void make_mounts(void)
{
    for (const struct mount_op *m = mounts; m->destination; m++) {
        if (mkdir(m->destination, 0755) < 0 && errno != EEXIST)
            must(-1, m->destination);
        must(mount(m->source, m->destination, m->type, m->flags, m->data), m->destination);
    }
}

static void make_devices(void)
{
    umask(0);
    for (size_t i = 0; i < COUNT(mem_devices); i++)
        must(mknod(mem_devices[i].path, S_IFCHR | 0666, makedev(1, mem_devices[i].minor_of_mem)),
             mem_devices[i].path);
    must(mknod("/dev/tty", S_IFCHR | 0666, makedev(5, 0)), "/dev/tty");
    for (size_t i = 0; i < COUNT(links); i++)
        must(symlink(links[i].target, links[i].path), links[i].path);
    umask(022);
}

static void restrict_paths(void)
{
    /* One empty read-only tmpfs serves every masked directory. */
    const char *empty = NULL;

    for (const char *const *p = masked; *p; p++) {
        if (mount("/dev/null", *p, NULL, MS_BIND, NULL) == 0 || errno == ENOENT)
            continue;
        if (errno != ENOTDIR)
            must(-1, *p);
        if (empty) {
            must(mount(empty, *p, NULL, MS_BIND, NULL), *p);
        } else {
            must(mount("tmpfs", *p, "tmpfs", MS_RDONLY, NULL), *p);
            empty = *p;
        }
    }
    for (const char *const *p = readonly; *p; p++) {
        if (mount(*p, *p, NULL, MS_BIND | MS_REC, NULL) < 0) {
            if (errno == ENOENT)
                continue;
            must(-1, *p);
        }
        must(mount(NULL, *p, NULL,
                   MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), *p);
    }
    if (ROOT_FLAGS)
        must(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | ROOT_FLAGS, NULL), "remount the root");
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: floor ROOTFS CGROUP|-\n");
        return 2;
    }
    const char *cgroup = strcmp(argv[2], "-") ? argv[2] : NULL;
    struct clone_args clone = { .flags = NAMESPACES, .exit_signal = SIGCHLD };

    if (cgroup) {
        must(mkdir(cgroup, 0755), cgroup);
        int dir = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        must(dir, cgroup);
        clone.flags |= CLONE_INTO_CGROUP;
        clone.cgroup = (unsigned long long)dir;
    }

    pid_t pid = (pid_t)syscall(SYS_clone3, &clone, sizeof clone);
    if (pid == 0) {
        enter_rootfs(argv[1]);
        make_mounts();
        make_devices();
        restrict_paths();
        execve(args[0], args, env);
        must(-1, args[0]);
    }
    int clone_errno = errno, status = 0;
    if (pid > 0)
        must(waitpid(pid, &status, 0), "wait");
    if (cgroup)
        must(rmdir(cgroup), cgroup);
    errno = clone_errno;
    must(pid, "clone3");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
