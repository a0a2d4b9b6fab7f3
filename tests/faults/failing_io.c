// Lets the system calls of this process fail for files whose path holds a pattern: a full or broken disk, on demand.
// Loaded by LD_PRELOAD; `arm` sets what fails, `disarm` ends it. See campaign.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char pattern[256];
static int error_number, on_read, left;

void arm(const char *path, int error, int reading, int after) {
    strncpy(pattern, path, sizeof pattern - 1);
    error_number = error;
    on_read = reading;
    left = after;
}

void disarm(void) { pattern[0] = 0; }

static int fails(int fd, int reading) {
    char link[64], path[4096];
    if (!pattern[0] || reading != on_read)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (!strstr(path, pattern) || left-- > 0)
        return 0;
    errno = error_number;
    return 1;
}

#define WRAP(name, type, reading, parameters, arguments)                                                              \
    type name parameters {                                                                                            \
        static type(*real) parameters;                                                                                \
        if (!real)                                                                                                    \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                                       \
        return fails(fd, reading) ? -1 : real arguments;                                                              \
    }

WRAP(write, ssize_t, 0, (int fd, const void *data, size_t size), (fd, data, size))
WRAP(writev, ssize_t, 0, (int fd, const struct iovec *data, int count), (fd, data, count))
WRAP(pwrite64, ssize_t, 0, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRAP(fsync, int, 0, (int fd), (fd))
WRAP(read, ssize_t, 1, (int fd, void *data, size_t size), (fd, data, size))
WRAP(pread64, ssize_t, 1, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
