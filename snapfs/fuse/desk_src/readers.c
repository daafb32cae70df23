/* Threads for reads whose data is not in memory. See readers.h.
 *
 * The session's thread has tried to read without waiting, which had the kernel begin to fetch the data;
 * so a thread waits for the rest of that only, and writes the reply itself. A thread that has had nothing
 * to do for a while ends, with its buffer.
 *
 * `lock` guards all that is static here.
 */
#define _GNU_SOURCE
#include "readers.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MOST_THREADS 16
#define MOST_WAITING 256 /* what is more is left to Python's threads */
#define STAYS_S 5
#define STACK_BYTES (256u * 1024u) /* of addresses; a few KiB are used */
#define SMALL_BYTES (128u * 1024u)

struct job {
    const struct hot_api *api;
    struct kept *file;
    uint64_t unique, offset;
    uint32_t size;
    int device;
    void (*what)(void); /* in place of a read */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wanted = PTHREAD_COND_INITIALIZER, settled = PTHREAD_COND_INITIALIZER;
static struct job waiting[MOST_WAITING]; /* a ring */
static size_t first, waits, under_way;
static unsigned threads, resting;

/* Read all that there is; the number of bytes, or an errno below zero. */
static ssize_t read_all(const struct job *job, char *buffer)
{
    size_t done = 0;
    while (done < job->size) {
        ssize_t more = pread(job->file->fd, buffer + done, job->size - done,
                             (off_t)(job->offset + done));
        if (more < 0 && errno == EINTR)
            continue;
        if (more < 0)
            return -errno; /* less than was asked for would be the end of the file, and zeros after it */
        if (more == 0)
            break;
        done += (size_t)more;
    }
    return (ssize_t)done;
}

static void serve(const struct job *job, char **buffer, size_t *room)
{
    if (job->what) {
        job->what();
        return;
    }
    if (*room < job->size) {
        free(*buffer);
        *room = job->size > SMALL_BYTES ? BUFFER_BYTES : SMALL_BYTES;
        *buffer = malloc(*room);
    }
    if (!*buffer)
        *room = 0;
    ssize_t done = *buffer ? read_all(job, *buffer) : -ENOMEM;
    job->api->reply(job->device, job->unique, done < 0 ? (int)-done : 0, *buffer,
                    done < 0 ? 0 : (size_t)done);
    kept_release(job->file);
}

/* Wait for something to do, with the lock held; false when there was nothing for long enough. */
static bool rest(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += STAYS_S;
    resting++;
    int error = 0;
    while (!waits && !error)
        error = pthread_cond_timedwait(&wanted, &lock, &until);
    resting--;
    return waits;
}

static void *work(void *unused)
{
    char *buffer = NULL;
    size_t room = 0;
    pthread_mutex_lock(&lock);
    while (waits || rest()) {
        struct job job = waiting[first];
        first = (first + 1) % MOST_WAITING;
        waits--;
        under_way++;
        pthread_mutex_unlock(&lock);
        serve(&job, &buffer, &room);
        pthread_mutex_lock(&lock);
        if (!--under_way && !waits)
            pthread_cond_broadcast(&settled);
    }
    threads--;
    pthread_mutex_unlock(&lock);
    free(buffer);
    return unused;
}

/* Start one more thread, with the lock held. Signals are for the others. */
static void start(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    if (pthread_attr_init(&attributes))
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, &attributes, work, NULL) == 0)
        threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static bool take(const struct job *job)
{
    pthread_mutex_lock(&lock);
    if (waits >= resting && threads < MOST_THREADS)
        start();
    bool takes = threads && waits < MOST_WAITING;
    if (takes) {
        if (job->file)
            kept_hold(job->file);
        waiting[(first + waits++) % MOST_WAITING] = *job;
        pthread_cond_signal(&wanted);
    }
    pthread_mutex_unlock(&lock);
    return takes;
}

bool readers_take(int device, const struct hot_api *api, uint64_t unique, struct kept *file,
                  uint64_t offset, uint32_t size)
{
    return take(&(struct job){
        .api = api, .file = file, .unique = unique, .offset = offset, .size = size, .device = device});
}

bool readers_do(void (*what)(void))
{
    return take(&(struct job){.what = what});
}

void readers_drain(void)
{
    pthread_mutex_lock(&lock);
    while (waits || under_way)
        pthread_cond_wait(&settled, &lock);
    pthread_mutex_unlock(&lock);
}
