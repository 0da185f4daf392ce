/* Preloaded into a server: its wall clock shows what is written in the file FAULTS_CLOCK (ms to add). */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *moved_ms;

__attribute__((constructor)) static void map_file(void) {
    const char *path = getenv("FAULTS_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) abort();
    moved_ms = mmap(NULL, sizeof *moved_ms, PROT_READ, MAP_SHARED, file, 0);
    if (moved_ms == MAP_FAILED) abort();
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && moved_ms) {
        int64_t nanoseconds = now->tv_nsec + *moved_ms % 1000 * 1000000;
        int64_t carry = nanoseconds < 0 ? -1 : nanoseconds / 1000000000;
        now->tv_nsec = nanoseconds - carry * 1000000000;
        now->tv_sec += *moved_ms / 1000 + carry;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result) *result = exact.tv_sec;
    return exact.tv_sec;
}
