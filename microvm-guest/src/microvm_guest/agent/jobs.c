#include "jobs.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "connection.h"
#include "fields.h"
#include "job_log.h"
#include "launch.h"
#include "loop.h"
#include "requests.h"
#include "session.h"
#include "wire.h"

#define READ_BYTES 65536

struct job {
    struct watch output; /* first: the loop hands it back */
    struct watch report;
    struct job *next; /* the newest is first */
    uint32_t id;
    pid_t pid; /* 0: reaped */
    int status;
    bool started, doomed;
    uint64_t began_ns; /* on the monotonic clock */
    struct job_log log;
    char text[WIRE_MAX_JOB_TEXT]; /* its arguments, each with a NUL behind it */
    size_t text_length;
};

struct attachment {
    struct attachment *next;
    struct job *job;
    struct connection *connection;
    uint32_t stream;
    uint32_t window;
    uint64_t position; /* in the log */
    bool begun, eof;
};

static struct job *jobs;
static struct attachment *attachments;
static unsigned kept, attached;
static uint32_t last_id;

/* --- attachments ------------------------------------------------------------------------- */

static void detach(struct attachment *attachment)
{
    struct attachment **link = &attachments;
    while (*link != attachment)
        link = &(*link)->next;
    *link = attachment->next;
    attached--;
    free(attachment);
}

static struct attachment *attach(struct job *job, struct connection *connection, uint32_t stream,
                                 uint32_t window, uint64_t position)
{
    struct attachment *attachment =
        attached < WIRE_MAX_ATTACHMENTS ? calloc(1, sizeof *attachment) : NULL;
    if (attachment == NULL)
        return NULL;
    attached++;
    *attachment = (struct attachment){.next = attachments,
                                      .job = job,
                                      .connection = connection,
                                      .stream = stream,
                                      .window = window,
                                      .position = position};
    return attachments = attachment;
}

static void send_end(struct attachment *attachment, uint32_t code, uint32_t signal)
{
    uint8_t payload[8];
    put_u32(payload, code);
    put_u32(payload + 4, signal);
    connection_send(attachment->connection, FRAME_EXIT, 0, attachment->stream, payload, 8);
}

static void send_started(struct attachment *attachment)
{
    uint8_t payload[4];
    put_u32(payload, attachment->job->id);
    connection_send(attachment->connection, FRAME_STARTED, 0, attachment->stream, payload, 4);
    attachment->begun = true;
}

/* What the log no longer has. */
static void skip(struct attachment *attachment)
{
    uint8_t payload[8];
    uint64_t begin = log_begin(&attachment->job->log);
    if (attachment->position >= begin)
        return;
    put_u64(payload, begin - attachment->position);
    connection_send(attachment->connection, FRAME_SKIPPED, 0, attachment->stream, payload, 8);
    attachment->position = begin;
}

static bool is_over(const struct job *job)
{
    return job->started && job->pid == 0 && job->output.fd < 0;
}

/* Say what can be said now. False when that was all there will ever be: it is freed. */
static bool advance(struct attachment *attachment)
{
    struct job *job = attachment->job;
    size_t room;
    uint8_t *into;
    if (!job->started)
        return true;
    if (!attachment->begun)
        send_started(attachment);
    while (attachment->position < job->log.end && attachment->window > 0 &&
           !attachment->connection->full) {
        skip(attachment);
        if ((into = connection_room(attachment->connection, &room)) == NULL)
            return true;
        if (room > attachment->window)
            room = attachment->window;
        room = log_copy(&job->log, attachment->position, into, room);
        attachment->position += room;
        attachment->window -= (uint32_t)room;
        connection_commit(attachment->connection, FRAME_STDOUT, 0, attachment->stream, room);
    }
    if (!is_over(job) || attachment->position < job->log.end)
        return true;
    connection_send(attachment->connection, FRAME_STDOUT, FLAG_EOF, attachment->stream, NULL, 0);
    send_end(attachment, WIFEXITED(job->status) ? (uint32_t)WEXITSTATUS(job->status) : 0,
             WIFSIGNALED(job->status) ? (uint32_t)WTERMSIG(job->status) : 0);
    detach(attachment);
    return false;
}

static void advance_all(const struct job *job)
{
    struct attachment *next;
    for (struct attachment *it = attachments; it != NULL; it = next) {
        next = it->next;
        if (it->job == job)
            advance(it);
    }
}

/* --- jobs -------------------------------------------------------------------------------- */

/* What is attached to it has been told its end. */
static void forget(struct job *job)
{
    struct attachment *next;
    for (struct attachment *it = attachments; it != NULL; it = next) {
        next = it->next;
        if (it->job == job)
            detach(it);
    }
    struct job **link = &jobs;
    while (*link != job)
        link = &(*link)->next;
    *link = job->next;
    kept--;
    watch_close(&job->output);
    watch_close(&job->report);
    log_close(&job->log);
    free(job);
}

/* Its streams end, however much of the log they have not been told. */
static void end_attachments(const struct job *job)
{
    for (struct attachment *it = attachments; it != NULL; it = it->next) {
        if (it->job != job)
            continue;
        if (!it->begun)
            send_started(it);
        connection_send(it->connection, FRAME_STDOUT, FLAG_EOF, it->stream, NULL, 0);
        send_end(it, 0, SIGKILL);
    }
}

static bool in_use(const struct job *job)
{
    for (struct attachment *it = attachments; it != NULL; it = it->next)
        if (it->job == job)
            return true;
    return false;
}

/* Room for one more: the job that ended, and was begun longest ago, gives way. */
static bool make_room(void)
{
    struct job *oldest = NULL;
    if (kept < WIRE_MAX_JOBS)
        return true;
    for (struct job *it = jobs; it != NULL; it = it->next)
        if (is_over(it) && !in_use(it))
            oldest = it;
    if (oldest != NULL)
        forget(oldest);
    return oldest != NULL;
}

static void output_ready(struct watch *watch, uint32_t events)
{
    struct job *job = (struct job *)watch;
    (void)events;
    ssize_t got = log_read_from(&job->log, watch->fd, READ_BYTES);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        watch_close(watch); /* its end is still to come */
    advance_all(job);
}

/* The child's report: its end is exec's success, anything else an ERROR's payload. False: that was
 * the job's end. */
static bool read_report(struct job *job)
{
    uint8_t report[LAUNCH_MAX_REPORT];
    ssize_t got = read(job->report.fd, report, sizeof report);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    watch_close(&job->report);
    if (got > 4) {
        for (struct attachment *it = attachments; it != NULL; it = it->next)
            if (it->job == job)
                connection_send(it->connection, FRAME_ERROR, 0, it->stream, report, (size_t)got);
        forget(job);
        return false;
    }
    job->started = true;
    if (!watch_for(&job->output, EPOLLIN))
        watch_close(&job->output); /* no memory for the watch: it runs without a log */
    advance_all(job);
    return true;
}

static void report_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    read_report((struct job *)((char *)watch - offsetof(struct job, report)));
}

/* The argument vector, as far as there is room to show it. */
static void remember_words(struct job *job, const struct launch *launch)
{
    struct field_reader reader = {.next = launch->fields,
                                  .end = launch->fields + launch->fields_length};
    struct field field;
    while (field_next(&reader, &field)) {
        size_t room = sizeof job->text - job->text_length;
        if (field.tag != FIELD_ARG || room <= field.length)
            continue;
        memcpy(job->text + job->text_length, field.value, field.length);
        job->text_length += field.length;
        job->text[job->text_length++] = 0;
    }
}

void job_run(struct connection *connection, uint32_t stream, struct launch *launch)
{
    const char *why = "As many jobs run as the agent keeps.";
    struct job *job = make_room() ? calloc(1, sizeof *job) : NULL;
    if (job == NULL || !log_open(&job->log, launch->log_bytes)) {
        connection_send_error(connection, stream, job == NULL ? ERROR_BUSY : ERROR_RESOURCES,
                              job == NULL ? why : "Out of memory.");
        free(job);
        return;
    }
    uint32_t error = attach(job, connection, stream, launch->window, 0) == NULL
                         ? ERROR_RESOURCES
                         : launch_start(launch, &why);
    watch_open(&job->output, error == 0 ? launch->out : -1, output_ready);
    watch_open(&job->report, error == 0 ? launch->report : -1, report_ready);
    job->next = jobs;
    jobs = job;
    kept++;
    if (error != 0) {
        connection_send_error(connection, stream, error, why);
        forget(job);
        return;
    }
    job->id = ++last_id;
    job->pid = launch->pid;
    job->began_ns = monotonic_ns();
    remember_words(job, launch);
    if (!watch_for(&job->report, EPOLLIN))
        connection->broken = true;
}

static bool is_doomed(pid_t session)
{
    for (struct job *it = jobs; it != NULL; it = it->next)
        if (it->pid == session)
            return it->doomed;
    return false;
}

/* End it, if it runs, with all of its session; nothing of it is kept. */
static void doom(struct job *job)
{
    job->doomed = true;
    if (job->pid == 0) {
        end_attachments(job);
        forget(job);
        return;
    }
    kill(-job->pid, SIGKILL);
    kill(job->pid, SIGKILL);
    session_kill(is_doomed); /* the rest follows when it is reaped */
}

const char *job_attach(struct connection *connection, const struct frame *frame)
{
    struct field_reader reader = {.next = frame->payload, .end = frame->payload + frame->length};
    struct field field;
    uint32_t id = 0, window = 0;
    uint64_t from = 0;
    while (field_next(&reader, &field)) {
        if (field.tag == FIELD_JOB && field.length == 4)
            id = get_u32(field.value);
        else if (field.tag == FIELD_WINDOW && field.length == 4)
            window = get_u32(field.value);
        else if (field.tag == FIELD_LOG_FROM && field.length == 8)
            from = get_u64(field.value);
    }
    if (reader.malformed || window > WIRE_MAX_WINDOW)
        return "An ATTACH is cut short, or its window is out of bounds.";
    struct job *job = jobs;
    while (job != NULL && job->id != id)
        job = job->next;
    struct attachment *attachment =
        job == NULL || job->doomed ? NULL : attach(job, connection, frame->stream, window, from);
    if (attachment == NULL) {
        bool known = job != NULL && !job->doomed;
        connection_send_error(connection, frame->stream, known ? ERROR_BUSY : ERROR_JOB,
                              known ? "As many are attached to jobs as the agent serves."
                                    : "There is no such job.");
        return NULL;
    }
    if (attachment->position > job->log.end)
        attachment->position = job->log.end;
    if (frame->flags & FLAG_FORGET)
        doom(job);
    else
        advance(attachment);
    return NULL;
}

/* --- requests ---------------------------------------------------------------------------- */

struct attachment *attachment_find(struct connection *connection, uint32_t stream)
{
    struct attachment *it = attachments;
    while (it != NULL && (it->connection != connection || it->stream != stream))
        it = it->next;
    return it;
}

const char *attachment_window(struct attachment *attachment, uint32_t channel, uint32_t bytes)
{
    if (channel != CHANNEL_STDOUT)
        return "A WINDOW names no output.";
    if (bytes > WIRE_MAX_WINDOW - attachment->window)
        return "A WINDOW opens an output further than is allowed.";
    attachment->window += bytes;
    advance(attachment);
    return NULL;
}

const char *attachment_signal(struct attachment *attachment, uint32_t signal)
{
    pid_t pid = attachment->job->pid;
    if (signal < 1 || signal > 64)
        return "A KILL names no signal.";
    if (pid != 0 && kill(-pid, (int)signal) != 0 && errno == ESRCH)
        kill(pid, (int)signal);
    return NULL;
}

void attachment_release(struct attachment *attachment, bool forgets)
{
    struct job *job = attachment->job;
    if (attachment->begun)
        send_end(attachment, 0, 0);
    else
        connection_send_error(attachment->connection, attachment->stream, ERROR_BUSY, "Let go.");
    detach(attachment);
    if (forgets)
        doom(job);
}

/* WIRE_JOB_BYTES, and the words. */
static void tell(const struct job *job, struct field_writer *writer)
{
    uint8_t raw[WIRE_JOB_BYTES + WIRE_MAX_JOB_TEXT];
    bool over = is_over(job);
    put_u32(raw, job->id);
    put_u32(raw + 4, over ? 0 : (uint32_t)job->pid);
    put_u32(raw + 8, over && WIFEXITED(job->status) ? (uint32_t)WEXITSTATUS(job->status) : 0);
    put_u32(raw + 12, over && WIFSIGNALED(job->status) ? (uint32_t)WTERMSIG(job->status) : 0);
    put_u32(raw + 16, over ? 0 : 1);
    put_u32(raw + 20, (uint32_t)job->log.size);
    put_u64(raw + 24, log_begin(&job->log));
    put_u64(raw + 32, job->log.end);
    put_u64(raw + 40, monotonic_ns() - job->began_ns);
    memcpy(raw + WIRE_JOB_BYTES, job->text, job->text_length);
    field_put(writer, FIELD_JOB, raw, WIRE_JOB_BYTES + job->text_length);
}

void jobs_tell(struct connection *connection)
{
    static uint8_t payload[WIRE_MAX_JOBS * (4 + WIRE_JOB_BYTES + WIRE_MAX_JOB_TEXT)];
    struct field_writer writer = {.start = payload, .capacity = sizeof payload};
    for (const struct job *it = jobs; it != NULL; it = it->next)
        if (it->started && !it->doomed)
            tell(it, &writer);
    connection_send(connection, FRAME_JOBS, 0, 0, payload, writer.length);
}

/* --- the end ----------------------------------------------------------------------------- */

void job_reaped(pid_t pid, int status)
{
    struct job *job = jobs;
    int held = 0;
    while (job != NULL && job->pid != pid)
        job = job->next;
    if (job == NULL)
        return;
    if (job->report.fd >= 0 && !read_report(job))
        return;
    job->pid = 0;
    job->status = status;
    if (job->doomed) {
        end_attachments(job);
        forget(job);
        return;
    }
    /* what its pipe holds now is its last words; who has inherited the pipe is not listened to */
    if (job->output.fd >= 0 && ioctl(job->output.fd, FIONREAD, &held) == 0)
        while (held > 0) {
            ssize_t got = log_read_from(&job->log, job->output.fd, (size_t)held);
            held = got > 0 ? held - (int)got : 0;
        }
    watch_close(&job->output);
    advance_all(job);
}

void jobs_disown(struct connection *connection)
{
    struct attachment *next;
    for (struct attachment *it = attachments; it != NULL; it = next) {
        next = it->next;
        if (it->connection == connection)
            detach(it);
    }
}

void jobs_rearm(struct connection *connection)
{
    struct attachment *next;
    for (struct attachment *it = attachments; it != NULL; it = next) {
        next = it->next;
        if (it->connection == connection)
            advance(it);
    }
}

void jobs_signal(int signal)
{
    for (struct job *it = jobs; it != NULL; it = it->next)
        if (it->pid != 0)
            kill(-it->pid, signal);
}

unsigned jobs_count(void)
{
    unsigned count = 0;
    for (struct job *it = jobs; it != NULL; it = it->next)
        count += it->pid != 0;
    return count;
}
