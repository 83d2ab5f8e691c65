/* Moves the wall clock of a process and of its children by OFFSET_SECONDS; see run.

   A preloaded library: each function here stands before the one of the same name in libc. Reads of the real-time clock
   get the offset added. Waits until a moment of the real-time clock get it subtracted, because the kernel, which does
   the waiting, knows nothing of the offset: gRPC and Envoy would otherwise wait for OFFSET_SECONDS too long in
   syscall(SYS_futex). Monotonic clocks, durations and the times of files stay as they are. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>

typedef const struct timespec *moment;

/* A moment of a clock that the call does not name is one of the real-time clock if it is later than 2001: no machine has
   been up for as long. */
#define EARLIEST_REAL_TIME 1000000000

#define NEXT(name) ((__typeof__(&name))next(#name, (void **)&next_##name))

static void *next(const char *name, void **found)
{
    if (*found == NULL)
        *found = dlsym(RTLD_NEXT, name);
    return *found;
}

static int is_real_time(clockid_t clock)
{
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

static clockid_t clock_of(moment until)
{
    return until != NULL && until->tv_sec >= EARLIEST_REAL_TIME ? CLOCK_REALTIME : CLOCK_MONOTONIC;
}

/* Returns the moment as the kernel counts it: `until` itself, or `moved` set to it. */
static moment unmoved(clockid_t clock, moment until, struct timespec *moved)
{
    if (until == NULL || !is_real_time(clock) || until->tv_sec < EARLIEST_REAL_TIME)
        return until;
    *moved = *until;
    moved->tv_sec -= OFFSET_SECONDS;
    return moved;
}

/* Reads */

static void *next_clock_gettime, *next_syscall;

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = NEXT(clock_gettime)(clock, now);
    if (result == 0 && is_real_time(clock))
        now->tv_sec += OFFSET_SECONDS;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now != NULL)
        *now = precise.tv_sec;
    return precise.tv_sec;
}

int timespec_get(struct timespec *now, int base)
{
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, now) == 0 ? base : 0;
}

/* Waits */

#define WAIT(name, clock, parameters, ...)           \
    static void *next_##name;                        \
    int name parameters                              \
    {                                                \
        struct timespec moved;                       \
        until = unmoved(clock, until, &moved);       \
        return NEXT(name)(__VA_ARGS__);              \
    }

WAIT(pthread_cond_clockwait, clock,
     (pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, clockid_t clock, moment restrict until),
     condition, mutex, clock, until)
WAIT(pthread_mutex_clocklock, clock, (pthread_mutex_t *restrict mutex, clockid_t clock, moment restrict until),
     mutex, clock, until)
WAIT(pthread_mutex_timedlock, CLOCK_REALTIME, (pthread_mutex_t *restrict mutex, moment restrict until), mutex, until)
WAIT(sem_clockwait, clock, (sem_t *restrict semaphore, clockid_t clock, moment restrict until), semaphore, clock, until)
WAIT(sem_timedwait, CLOCK_REALTIME, (sem_t *restrict semaphore, moment restrict until), semaphore, until)
WAIT(clock_nanosleep, (flags & TIMER_ABSTIME) ? clock : CLOCK_MONOTONIC,
     (clockid_t clock, int flags, moment until, struct timespec *left), clock, flags, until, left)

/* libc has two incompatible functions of this name, but only one that waits by a named clock. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, moment restrict until)
{
    return pthread_cond_clockwait(condition, mutex, clock_of(until), until);
}

static void *next_timerfd_settime;

int timerfd_settime(int timer, int flags, const struct itimerspec *value, struct itimerspec *before)
{
    struct itimerspec moved;
    if (value != NULL && (flags & TFD_TIMER_ABSTIME) && clock_of(&value->it_value) == CLOCK_REALTIME) {
        moved = *value;
        moved.it_value.tv_sec -= OFFSET_SECONDS;
        value = &moved;
    }
    return NEXT(timerfd_settime)(timer, flags, value, before);
}

/* Which arguments there are depends on the number; those that are not there are passed on unread, as libc does. */
long syscall(long number, ...)
{
    struct timespec moved;
    va_list list;
    long argument[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        argument[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_clock_gettime)
        return clock_gettime((clockid_t)argument[0], (struct timespec *)argument[1]);
    /* FUTEX_WAIT alone takes a duration. */
    if (number == SYS_futex && (argument[1] & FUTEX_CLOCK_REALTIME) && (argument[1] & FUTEX_CMD_MASK) != FUTEX_WAIT)
        argument[3] = (long)unmoved(CLOCK_REALTIME, (moment)argument[3], &moved);
    return NEXT(syscall)(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}

/* Later calls may come from signal handlers, which must not look symbols up. */
__attribute__((constructor)) static void look_up(void)
{
    NEXT(clock_gettime);
    NEXT(syscall);
}
