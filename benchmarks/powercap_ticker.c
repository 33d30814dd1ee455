/* A RAPL counter's stand-in: writes FILE every millisecond with the energy of a known power, and says how late it was.

   powercap_ticker FILE PERIOD_S < segments    segments: "CLOCK_MONOTONIC_S W" a line, in order of time.
   Ends at the end of its time, or when killed; each interval that lasted longer than 1.05 periods is printed as
   "late FROM_S UNTIL_S", FROM_S being the time of the energy that the file showed until UNTIL_S. */
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SEGMENTS 4096

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int count, char **arguments) {
    static double from_s[SEGMENTS], power_w[SEGMENTS], before_j[SEGMENTS];
    if (count != 3) return 2;
    double period_s = atof(arguments[2]);
    int n = 0, at = 0, file = open(arguments[1], O_WRONLY);
    if (file < 0) return 2;
    while (n < SEGMENTS && scanf("%lf %lf", &from_s[n], &power_w[n]) == 2) {
        before_j[n] = n ? before_j[n - 1] + (from_s[n] - from_s[n - 1]) * power_w[n - 1] : 1000;
        n++;
    }
    struct sched_param priority = {.sched_priority = 50};
    sched_setscheduler(0, SCHED_FIFO, &priority); /* where that is allowed */
    mlockall(MCL_CURRENT);
    double shown_s = now_s();
    for (long long tick = (long long)floor(shown_s / period_s) + 1;; tick = (long long)floor(now_s() / period_s) + 1) {
        double due_s = (double)tick * period_s;
        struct timespec until = {(time_t)due_s, (long)(1e9 * (due_s - floor(due_s)))};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        double woken_s = now_s();
        while (at + 1 < n && from_s[at + 1] <= woken_s) at++;
        char text[32];
        int length = snprintf(text, sizeof text, "%020lld\n", (long long)(1e6 * (before_j[at] + (woken_s - from_s[at]) * power_w[at])));
        if (pwrite(file, text, (size_t)length, 0) != length) return 1;
        double written_s = now_s();
        if (written_s - shown_s > 1.05 * period_s) { printf("late %.6f %.6f\n", shown_s, written_s); fflush(stdout); }
        shown_s = woken_s;
    }
}
