/* Preloaded: kills the process at the k-th call that changes a file system, a write half way through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/uio.h>
#include <unistd.h>

static long left = 0, calls = 0; /* calls until death, 0 while not armed; calls since it was armed */

void crash_arm(long k) { left = k, calls = 0; }
long crash_calls(void) { return calls; }

static int due(void) {
  if (left == 0) return 0;
  calls++;
  return --left == 0;
}
static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define CALL(type, name, parameters, arguments) \
  type name parameters {                        \
    if (due()) die();                           \
    return NEXT(name) arguments;                \
  }
CALL(int, fsync, (int fd), (fd))
CALL(int, fdatasync, (int fd), (fd))
CALL(int, rename, (const char* a, const char* b), (a, b))
CALL(int, renameat, (int d, const char* a, int e, const char* b), (d, a, e, b))
CALL(int, renameat2, (int d, const char* a, int e, const char* b, unsigned f), (d, a, e, b, f))
CALL(int, unlink, (const char* a), (a))
CALL(int, unlinkat, (int d, const char* a, int f), (d, a, f))
CALL(int, rmdir, (const char* a), (a))
CALL(int, mkdir, (const char* a, mode_t m), (a, m))
CALL(int, mkdirat, (int d, const char* a, mode_t m), (d, a, m))
CALL(int, ftruncate, (int fd, off_t n), (fd, n))
CALL(int, ftruncate64, (int fd, off64_t n), (fd, n))
CALL(ssize_t, copy_file_range, (int a, off64_t* p, int b, off64_t* q, size_t n, unsigned f), (a, p, b, q, n, f))

ssize_t write(int fd, const void* data, size_t n) {
  if (due()) {
    if (n > 1) NEXT(write)(fd, data, n / 2);
    die();
  }
  return NEXT(write)(fd, data, n);
}
ssize_t writev(int fd, const struct iovec* parts, int n) {
  if (due()) {
    if (n > 0) NEXT(write)(fd, parts[0].iov_base, parts[0].iov_len / 2);
    die();
  }
  return NEXT(writev)(fd, parts, n);
}

#define OPEN(name, parameters, arguments)              \
  int name parameters {                                \
    va_list rest;                                      \
    va_start(rest, flags);                             \
    mode_t mode = va_arg(rest, int);                   \
    va_end(rest);                                      \
    if ((flags & (O_CREAT | O_TRUNC)) && due()) die(); \
    return NEXT(name) arguments;                       \
  }
OPEN(open, (const char* path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char* path, int flags, ...), (path, flags, mode))
OPEN(openat, (int d, const char* path, int flags, ...), (d, path, flags, mode))
OPEN(openat64, (int d, const char* path, int flags, ...), (d, path, flags, mode))
