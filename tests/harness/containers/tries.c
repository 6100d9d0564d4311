/* What a hostile program in a container tries, and what it finds out about its cage. One line each: "try NAME RESULT",
 * where RESULT is "done" (it worked) or the number of the error, or "is NAME VALUE". Nothing here does harm where it
 * works: files are opened and not written, but for a sector of the disk that the test names, written as it was read. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static FILE *out;

static void result(const char *name, long got) {
    if (got >= 0) fprintf(out, "try %s done\n", name);
    else fprintf(out, "try %s %d\n", name, errno);
}

static void try_open(const char *name, const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    result(name, fd);
    if (fd >= 0) close(fd);
}

static void disk(const char *numbers) {
    unsigned major_, minor_;
    char sector[4096];
    if (!numbers || sscanf(numbers, "%u:%u", &major_, &minor_) != 2) return;
    long got = mknod("/tmp/disk", S_IFBLK | 0600, makedev(major_, minor_));
    if (got == 0) {
        int fd = open("/tmp/disk", O_RDWR);
        got = fd < 0 ? -1 : pread(fd, sector, sizeof sector, 0);
        if (got > 0) got = pwrite(fd, sector, sizeof sector, 0);
        if (fd >= 0) close(fd);
        unlink("/tmp/disk");
    }
    result("mknod", got);
}

/* Every mount that is read-only, made writable; and what is mounted. */
static void mounts(void) {
    char line[4096], numbers[32], root[1024], target[1024], options[512];
    long got = -1;
    FILE *info = fopen("/proc/self/mountinfo", "r");
    while (info && fgets(line, sizeof line, info)) {
        if (sscanf(line, "%*s %*s %31s %1023s %1023s %511s", numbers, root, target, options) != 4) continue;
        char *rest = strstr(line, " - ");
        if (rest) rest[strcspn(rest, "\n")] = 0;
        fprintf(out, "mount %s %s %s\n", numbers, target, rest ? rest + 3 : "");
        if (!strncmp(options, "ro", 2) && !mount(NULL, target, NULL, MS_REMOUNT | MS_BIND, NULL)) got = 0;
    }
    if (info) fclose(info);
    if (got) errno = EPERM;
    result("remount", got);
}

static void cgroups(void) {
    char path[512];
    struct statvfs at;
    long agent = -1, made = -1;
    DIR *dir = opendir("/sys/fs/cgroup");
    for (struct dirent *one; dir && (one = readdir(dir));) {
        if (!strcmp(one->d_name, "..")) continue;
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/release_agent", one->d_name);
        int fd = open(path, O_WRONLY);
        if (fd >= 0) { agent = 0; close(fd); }
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/qstage-try", one->d_name);
        if (!mkdir(path, 0700)) { made = 0; rmdir(path); }
    }
    if (dir) closedir(dir);
    errno = EROFS;
    result("release_agent", agent);
    errno = EROFS;
    result("cgroup_mkdir", made);
    int known = !statvfs("/sys/fs/cgroup", &at);
    fprintf(out, "is cgroup_read_only %d\n", known && (at.f_flag & ST_RDONLY));
}

static void processes(const char *host) {
    pid_t child = fork();
    if (!child) { pause(); _exit(0); }
    result("ptrace_child", ptrace(PTRACE_ATTACH, child, 0, 0));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (host) result("ptrace_host", ptrace(PTRACE_ATTACH, atoi(host), 0, 0));
    if (host) result("kill_host", kill(atoi(host), 0));
    int init = open("/proc/1/ns/mnt", O_RDONLY);
    result("setns", setns(init, CLONE_NEWNS));
    child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (!child) _exit(0);
    result("clone_user_namespace", child);
    if (child > 0) waitpid(child, NULL, 0);
    child = fork();
    if (!child) _exit(unshare(CLONE_NEWUSER) ? errno : 0);
    int status = 0;
    waitpid(child, &status, 0);
    errno = WEXITSTATUS(status);
    result("unshare_user_namespace", errno ? -1 : 0);
}

static void calls(void) {
    struct timespec now;
    struct perf_event_attr event = { .size = sizeof event, .type = PERF_TYPE_SOFTWARE };
    struct { struct file_handle head; unsigned char bytes[8]; } handle = { { .handle_bytes = 8, .handle_type = 1 }, { 2 } };
    int root = open("/", O_RDONLY | O_DIRECTORY);
    char bytes[256] = { 0 };
    result("mount_tmpfs", mount("x", "/tmp", "tmpfs", 0, NULL));
    result("mount_cgroup", mount("x", "/tmp", "cgroup", 0, "memory"));
    result("mount_proc", mount("x", "/tmp", "proc", 0, NULL));
    result("umount", umount2("/proc", MNT_DETACH));
    result("chroot", chroot("/"));
    result("kexec", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    result("reboot", syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, 0));
    result("module", syscall(SYS_delete_module, "qstage_try", 0));
    result("swapon", swapon("/tmp", 0));
    clock_gettime(CLOCK_REALTIME, &now);
    result("clock", clock_settime(CLOCK_REALTIME, &now));
    result("handle", syscall(SYS_open_by_handle_at, root, &handle, O_RDONLY));
    result("bpf", syscall(SYS_bpf, 0, bytes, sizeof bytes));
    result("perf", syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
    result("keyctl", syscall(SYS_keyctl, 0, -3, 1));
    result("uring", syscall(SYS_io_uring_setup, 4, bytes));
    result("syslog", syscall(SYS_syslog, 3, bytes, 64));
}

static void status(void) {
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        char name[32], value[64];
        if (sscanf(line, "%31[^:]: %63s", name, value) != 2) continue;
        if (!strncmp(name, "Cap", 3) || !strcmp(name, "NoNewPrivs") || !strcmp(name, "Seccomp"))
            fprintf(out, "is %s %s\n", name, value);
    }
    if (file) fclose(file);
    file = fopen("/proc/self/uid_map", "r");
    unsigned long inside, outside, count;
    if (file && fscanf(file, "%lu %lu %lu", &inside, &outside, &count) == 3)
        fprintf(out, "is uid_outside %lu\nis uid_count %lu\n", outside, count);
    if (file) fclose(file);
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *one = all; one && one->if_index; one++) fprintf(out, "interface %s\n", one->if_name);
    DIR *dev = opendir("/dev");
    for (struct dirent *one; dev && (one = readdir(dev));) {
        struct stat at;
        if (!fstatat(dirfd(dev), one->d_name, &at, AT_SYMLINK_NOFOLLOW) && (S_ISBLK(at.st_mode) || S_ISCHR(at.st_mode)))
            fprintf(out, "device %s\n", one->d_name);
    }
}

/* Also with the name of a file that is there afterwards: what a health probe finds out. */
void tries(const char *report) {
    char part[256];
    snprintf(part, sizeof part, "%s.part", report);
    out = fopen(part, "w");
    if (!out) return;
    status();
    mounts();
    cgroups();
    disk(getenv("TRY_DISK"));
    processes(getenv("TRY_PID"));
    calls();
    try_open("core_pattern", "/proc/sys/kernel/core_pattern", O_WRONLY);
    try_open("sysctl", "/proc/sys/vm/swappiness", O_WRONLY);
    try_open("sysrq", "/proc/sysrq-trigger", O_WRONLY);
    try_open("kcore", "/proc/kcore", O_RDONLY);
    try_open("mem", "/dev/mem", O_RDWR);
    try_open("kmsg", "/dev/kmsg", O_RDONLY);
    try_open("sys", "/sys/kernel/uevent_helper", O_WRONLY);
    try_open("os_release", "/run/host/os-release", O_WRONLY);
    try_open("incoming", "/run/host/incoming/new", O_WRONLY | O_CREAT);
    try_open("gate_write", "/run/qstage-gate/qstage", O_WRONLY);
    try_open("gate_create", "/run/qstage-gate/new", O_WRONLY | O_CREAT);
    // The host removes the socket while this program starts, so that the gap of a swap is not longer: that takes milliseconds.
    for (int waited = 0; waited < 500 && access("/run/qstage-gate/gate", F_OK) == 0; waited++)
        usleep(10000);
    try_open("gate_socket", "/run/qstage-gate/gate", O_PATH);
    fclose(out);
    rename(part, report);
}
