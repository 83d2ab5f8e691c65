/*
 * Load client: sends the calls of a file over cleartext HTTP/2 to 127.0.0.1 and prints one JSON object.
 *
 *     load --port N --calls FILE [--connections N] [--streams N] [--seconds N] [--rate N] [--cycle]
 *
 * A call with a body is a gRPC call, one without is a GET. Each call is sent once, in the order of the file; with
 * --cycle the file starts again at its end. Without --rate every connection keeps `streams` calls in flight; with it
 * calls start at that many a second, and a call's latency counts from the moment when it was due, not from when it
 * was sent. The run ends with the list or after `seconds`, and then waits GRACE_SECONDS for what is in flight.
 *
 * The file, integers little-endian: "SKYLOAD1"; u32 n, then n texts (paths); u32 n, then n texts (values of the
 * authorization header, empty for none); u32 n, then n calls (u32 path, u32 authorization, text body). A text is a
 * u32 length and that many bytes; a body is a whole gRPC frame with its five-byte prefix.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CONNECTIONS = 256,
    MAX_STREAMS = 100, /* what a server must allow at least is advice only; this is what RFC 9113 recommends */
    MAX_SECONDS = 300,
    GRACE_SECONDS = 10,
    LONGEST_WAIT_NS = 100000000, /* below a second: it is the nanoseconds of a timespec */
    WINDOW_BYTES = 16 << 20, /* large enough that flow control never holds an answer back */
    BUFFER_BYTES = 64 << 10,
    GRPC_STATUSES = 17,
    NO_GRPC_STATUS = GRPC_STATUSES, /* an answer without grpc-status: a GET, or a broken call */
    HTTP_STATUSES = 600,
    STEPS = 128, /* of the histogram, half of them for each power of two: an error below two percent */
    BUCKETS = 40 * STEPS,
};

struct text {
    const uint8_t *bytes;
    uint32_t length;
};

struct call {
    uint32_t path, authorization;
    struct text body;
};

struct slot { /* one call in flight */
    const struct call *call;
    uint32_t sent_bytes;
    int64_t due_ns;
    int grpc_status, http_status;
};

struct connection {
    int fd;
    nghttp2_session *session;
    struct slot slots[MAX_STREAMS];
    struct slot *free_slots[MAX_STREAMS];
    int free_count;
    uint8_t output[BUFFER_BYTES];
    size_t output_length, output_sent;
    bool waits_for_write;
};

static struct text *paths, *authorizations;
static struct call *calls;
static uint32_t path_count, authorization_count, call_count;

static int connection_count = 32, stream_count = 4, epoll_fd;
static double rate;
static bool cycle;
static struct connection *connections;
static char authority[32];

static int64_t start_ns, end_ns, last_answer_ns;
static uint64_t started, answered, lost, body_bytes;
static uint64_t grpc_counts[GRPC_STATUSES + 1], http_counts[HTTP_STATUSES], latency_counts[BUCKETS];

static _Noreturn void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die("out of memory");
    return memory;
}

static int64_t now_ns(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now)) die("clock: %s", strerror(errno));
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* --- the file of calls --- */

static const uint8_t *cursor, *file_end;

static uint32_t read_u32(void) {
    if (file_end - cursor < 4) die("the file of calls is cut off");
    uint32_t value = cursor[0] | cursor[1] << 8 | cursor[2] << 16 | (uint32_t)cursor[3] << 24;
    cursor += 4;
    return value;
}

static struct text read_text(void) {
    struct text text = {.length = read_u32()};
    if ((size_t)(file_end - cursor) < text.length) die("the file of calls is cut off");
    text.bytes = cursor;
    cursor += text.length;
    return text;
}

static struct text *read_texts(uint32_t *count) {
    *count = read_u32();
    if (*count > (size_t)(file_end - cursor) / 4) die("the file of calls is cut off");
    struct text *texts = allocate(*count, sizeof *texts);
    for (uint32_t i = 0; i < *count; i++) texts[i] = read_text();
    return texts;
}

static void read_calls(const char *file_name) {
    static const char magic[8] = "SKYLOAD1";
    struct stat info;
    int fd = open(file_name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info)) die("%s: %s", file_name, strerror(errno));
    if (info.st_size < (off_t)sizeof magic) die("%s is no file of calls", file_name);
    cursor = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (cursor == MAP_FAILED) die("%s: %s", file_name, strerror(errno));
    close(fd);
    file_end = cursor + info.st_size;
    if (memcmp(cursor, magic, sizeof magic)) die("%s is no file of calls", file_name);
    cursor += sizeof magic;

    paths = read_texts(&path_count);
    authorizations = read_texts(&authorization_count);
    call_count = read_u32();
    if (!call_count || call_count > (size_t)(file_end - cursor) / 12) die("%s: no calls, or cut off", file_name);
    calls = allocate(call_count, sizeof *calls);
    for (uint32_t i = 0; i < call_count; i++) {
        calls[i].path = read_u32();
        calls[i].authorization = read_u32();
        calls[i].body = read_text();
        if (calls[i].path >= path_count || calls[i].authorization >= authorization_count)
            die("call %u names a path or an authorization that is not there", i);
    }
}

/* --- latencies: STEPS / 2 buckets for each power of two of microseconds --- */

static void record_latency(int64_t nanoseconds) {
    uint64_t us = nanoseconds > 0 ? (uint64_t)nanoseconds / 1000 : 0;
    int shift = us < STEPS ? 0 : 63 - __builtin_clzll(us) - 6;
    uint64_t bucket = (uint64_t)shift * (STEPS / 2) + (us >> shift);
    latency_counts[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
}

static double latency_ms(double quantile) {
    uint64_t seen = 0, wanted = (uint64_t)(quantile * (double)answered);
    for (uint64_t bucket = 0; bucket < BUCKETS; bucket++) {
        seen += latency_counts[bucket];
        if (seen > wanted || (seen && seen == answered)) {
            uint64_t shift = bucket < STEPS ? 0 : bucket / (STEPS / 2) - 1;
            return (double)((bucket - shift * (STEPS / 2)) << shift) / 1000.0;
        }
    }
    return 0;
}

/* --- one connection --- */

static ssize_t read_body(nghttp2_session *session, int32_t stream_id, uint8_t *buffer, size_t length, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
    (void)session, (void)stream_id, (void)user;
    struct slot *slot = source->ptr;
    size_t left = slot->call->body.length - slot->sent_bytes;
    size_t size = left < length ? left : length;
    memcpy(buffer, slot->call->body.bytes + slot->sent_bytes, size);
    slot->sent_bytes += (uint32_t)size;
    if (size == left) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)size;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *user) {
    (void)flags, (void)user;
    struct slot *slot = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!slot || value_length == 0 || value_length > 3) return 0;
    bool is_status = name_length == 7 && !memcmp(name, ":status", 7);
    /* In the headers of an answer without body, or in the trailers: both come through here. */
    bool is_grpc_status = name_length == 11 && !memcmp(name, "grpc-status", 11);
    if (!is_status && !is_grpc_status) return 0;
    int number = 0;
    for (size_t i = 0; i < value_length; i++) number = number * 10 + (value[i] - '0');
    if (is_status && number >= 0 && number < HTTP_STATUSES) slot->http_status = number;
    if (is_grpc_status && number >= 0 && number < GRPC_STATUSES) slot->grpc_status = number;
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *bytes, size_t length,
                   void *user) {
    (void)session, (void)flags, (void)stream_id, (void)bytes, (void)user;
    body_bytes += length;
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user) {
    struct connection *connection = user;
    struct slot *slot = nghttp2_session_get_stream_user_data(session, stream_id);
    if (!slot) return 0;
    bool cut_off = error_code != NGHTTP2_NO_ERROR && slot->grpc_status == NO_GRPC_STATUS;
    if (slot->http_status == 0 || cut_off) {
        lost++;
    } else {
        last_answer_ns = now_ns();
        answered++;
        http_counts[slot->http_status]++;
        grpc_counts[slot->grpc_status]++;
        record_latency(last_answer_ns - slot->due_ns);
    }
    connection->free_slots[connection->free_count++] = slot;
    return 0;
}

static void open_connection(struct connection *connection, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int on = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)&address, sizeof address))
        die("connect to port %d: %s", port, strerror(errno));
    if (setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) ||
        fcntl(connection->fd, F_SETFL, O_NONBLOCK))
        die("socket: %s", strerror(errno));

    nghttp2_session_callbacks *callbacks;
    if (nghttp2_session_callbacks_new(&callbacks)) die("out of memory");
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    int error = nghttp2_session_client_new(&connection->session, callbacks, connection);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES}};
    if (!error) error = nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, 2);
    if (!error)
        error = nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, WINDOW_BYTES);
    if (error) die("session: %s", nghttp2_strerror(error));

    for (int i = 0; i < stream_count; i++) connection->free_slots[i] = &connection->slots[i];
    connection->free_count = stream_count;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd, &event)) die("epoll: %s", strerror(errno));
}

static void close_connection(struct connection *connection) {
    if (connection->fd < 0) return;
    lost += (uint64_t)(stream_count - connection->free_count);
    connection->free_count = 0;
    close(connection->fd);
    connection->fd = -1;
}

static nghttp2_nv header(const char *name, struct text value) {
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value.bytes, strlen(name), value.length,
                        NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

static struct text text_of(const char *characters) {
    return (struct text){(const uint8_t *)characters, (uint32_t)strlen(characters)};
}

static bool send_call(struct connection *connection, const struct call *call, int64_t due_ns) {
    struct slot *slot = connection->free_slots[connection->free_count - 1];
    *slot = (struct slot){.call = call, .due_ns = due_ns, .grpc_status = NO_GRPC_STATUS};
    bool is_grpc = call->body.length > 0;
    nghttp2_nv headers[8];
    size_t count = 0;
    headers[count++] = header(":method", text_of(is_grpc ? "POST" : "GET"));
    headers[count++] = header(":scheme", text_of("http"));
    headers[count++] = header(":path", paths[call->path]);
    headers[count++] = header(":authority", text_of(authority));
    if (is_grpc) {
        headers[count++] = header("te", text_of("trailers"));
        headers[count++] = header("content-type", text_of("application/grpc"));
        headers[count++] = header("grpc-timeout", text_of("10S"));
    }
    if (authorizations[call->authorization].length)
        headers[count++] = header("authorization", authorizations[call->authorization]);
    nghttp2_data_provider body = {.source.ptr = slot, .read_callback = read_body};
    int32_t stream_id =
        nghttp2_submit_request(connection->session, NULL, headers, count, is_grpc ? &body : NULL, slot);
    if (stream_id < 0) return false;
    connection->free_count--;
    return true;
}

static void write_output(struct connection *connection) {
    while (connection->fd >= 0) {
        if (connection->output_sent == connection->output_length) {
            connection->output_sent = connection->output_length = 0;
            const uint8_t *frame;
            ssize_t size = 0;
            /* A frame is at most 16 KiB and its header, so that a quarter of the buffer always holds one more. */
            while (connection->output_length <= BUFFER_BYTES - (20 << 10) &&
                   (size = nghttp2_session_mem_send(connection->session, &frame)) > 0) {
                memcpy(connection->output + connection->output_length, frame, (size_t)size);
                connection->output_length += (size_t)size;
            }
            if (size < 0) close_connection(connection);
            if (connection->output_length == 0 || size < 0) break;
        }
        ssize_t written = write(connection->fd, connection->output + connection->output_sent,
                                connection->output_length - connection->output_sent);
        if (written < 0 && errno == EAGAIN) break;
        if (written < 0)
            close_connection(connection);
        else
            connection->output_sent += (size_t)written;
    }
    bool waits = connection->fd >= 0 && connection->output_sent < connection->output_length;
    if (connection->fd >= 0 && waits != connection->waits_for_write) {
        struct epoll_event event = {.events = EPOLLIN | (waits ? EPOLLOUT : 0), .data.ptr = connection};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, connection->fd, &event)) die("epoll: %s", strerror(errno));
        connection->waits_for_write = waits;
    }
}

static void read_input(struct connection *connection) {
    static uint8_t input[4 * BUFFER_BYTES];
    ssize_t size = read(connection->fd, input, sizeof input);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0 || nghttp2_session_mem_recv(connection->session, input, (size_t)size) < 0)
        close_connection(connection);
}

/* --- the run --- */

static int64_t next_due_ns(void) { return rate > 0 ? start_ns + (int64_t)((double)started * 1e9 / rate) : start_ns; }

static bool list_is_done(void) { return !cycle && started >= call_count; }

/*
 * Starts what is due, one connection after the other, until nothing is due or every connection is full.
 * Returns how long nothing more has to be started unless an answer comes.
 */
static int64_t dispatch(int64_t now) {
    static int turn;
    for (int full = 0; full < connection_count; turn = (turn + 1) % connection_count) {
        if (list_is_done() || now >= end_ns) break;
        int64_t due_ns = next_due_ns();
        if (due_ns > now) return due_ns - now < LONGEST_WAIT_NS ? due_ns - now : LONGEST_WAIT_NS;
        struct connection *connection = &connections[turn];
        if (connection->fd < 0 || connection->free_count == 0) {
            full++;
        } else if (send_call(connection, &calls[started % call_count], rate > 0 ? due_ns : now)) {
            started++;
            full = 0;
        } else { /* the server said GOAWAY */
            full++;
        }
    }
    return LONGEST_WAIT_NS;
}

static bool anything_in_flight(void) {
    for (int i = 0; i < connection_count; i++)
        if (connections[i].fd >= 0 && connections[i].free_count < stream_count) return true;
    return false;
}

static bool all_closed(void) {
    for (int i = 0; i < connection_count; i++)
        if (connections[i].fd >= 0) return false;
    return true;
}

static void run(double seconds) {
    struct epoll_event events[MAX_CONNECTIONS];
    start_ns = last_answer_ns = now_ns();
    end_ns = start_ns + (int64_t)(seconds * 1e9);
    for (int64_t now = start_ns; now < end_ns + (int64_t)GRACE_SECONDS * 1000000000 && !all_closed(); now = now_ns()) {
        int64_t wait_ns = dispatch(now);
        for (int i = 0; i < connection_count; i++) write_output(&connections[i]);
        if ((list_is_done() || now >= end_ns) && !anything_in_flight()) break;
        struct timespec wait = {.tv_nsec = wait_ns};
        int count = epoll_pwait2(epoll_fd, events, MAX_CONNECTIONS, &wait, NULL);
        if (count < 0 && errno != EINTR) die("epoll: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection->fd >= 0 && (events[i].events & ~(uint32_t)EPOLLOUT)) read_input(connection);
        }
    }
    for (int i = 0; i < connection_count; i++) close_connection(&connections[i]);
}

static void print_counts(const char *name, const uint64_t *counts, int size) {
    const char *separator = "";
    printf("\"%s\": {", name);
    for (int i = 0; i < size; i++) {
        if (counts[i]) {
            printf("%s\"%d\": %llu", separator, i, (unsigned long long)counts[i]);
            separator = ", ";
        }
    }
    printf("}, ");
}

static void print_result(void) {
    printf("{\"calls\": %llu, \"lost\": %llu, \"seconds\": %.6f, \"bytes\": %llu, ", (unsigned long long)answered,
           (unsigned long long)lost, (double)(last_answer_ns - start_ns) / 1e9, (unsigned long long)body_bytes);
    print_counts("grpc", grpc_counts, GRPC_STATUSES);
    print_counts("http", http_counts, HTTP_STATUSES);
    printf("\"latency_ms\": {\"p50\": %.3f, \"p95\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f}}\n", latency_ms(0.5),
           latency_ms(0.95), latency_ms(0.99), latency_ms(0.999));
}

static double number(const char *option, double low, double high) {
    char *end;
    double value = strtod(optarg, &end);
    if (*end || !(value >= low && value <= high)) die("--%s takes %g to %g", option, low, high);
    return value;
}

int main(int argument_count, char **arguments) {
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},
        {"calls", required_argument, NULL, 'f'},
        {"connections", required_argument, NULL, 'c'},
        {"streams", required_argument, NULL, 'm'},
        {"seconds", required_argument, NULL, 's'},
        {"rate", required_argument, NULL, 'r'},
        {"cycle", no_argument, NULL, 'y'},
        {NULL, 0, NULL, 0}};
    int port = 0;
    double seconds = 4;
    const char *file_name = NULL;
    for (int option; (option = getopt_long(argument_count, arguments, "", options, NULL)) != -1;) {
        switch (option) {
        case 'p': port = (int)number("port", 1, 65535); break;
        case 'f': file_name = optarg; break;
        case 'c': connection_count = (int)number("connections", 1, MAX_CONNECTIONS); break;
        case 'm': stream_count = (int)number("streams", 1, MAX_STREAMS); break;
        case 's': seconds = number("seconds", 0.1, MAX_SECONDS); break;
        case 'r': rate = number("rate", 0.1, 1e6); break;
        case 'y': cycle = true; break;
        default: return 2;
        }
    }
    if (!port || !file_name) die("--port and --calls are needed");
    read_calls(file_name);
    snprintf(authority, sizeof authority, "127.0.0.1:%d", port);
    connections = allocate((size_t)connection_count, sizeof *connections);
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll: %s", strerror(errno));
    for (int i = 0; i < connection_count; i++) open_connection(&connections[i], port);
    run(seconds);
    print_result();
    return 0;
}
