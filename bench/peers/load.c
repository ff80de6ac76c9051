/* A load generator that costs little: N kept-alive HTTP/1.1 connections on loopback, each of which
 * sends its next request when the last answer has come to its end. One thread, epoll.
 *
 *     load PORT PATH BODIES CONNECTIONS REQUESTS [hold]
 *
 * BODIES is a file with one JSON body per line; request n sends line n, and begins anew after the last.
 * Prints one line of JSON: what was answered, latencies in milliseconds, and its own CPU seconds.
 * The first token is the first `"content":"` with anything in it, or the end of an answer without one.
 * With `hold`, prints it when CONNECTIONS streams have had a first token, and stays until its input ends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_HEAD_BYTES = 16384, READ_BYTES = 262144 };

/* Where in an answer a connection is. */
enum state { HEAD, SIZED, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
    int socket;
    enum state state;
    const char *out; /* what is left to send */
    size_t out_bytes;
    char head[ANSWER_HEAD_BYTES]; /* of the answer, or a line of its framing */
    size_t head_bytes;
    size_t left_bytes; /* of the sized body or the chunk */
    int status;
    int seen;      /* how many bytes of `"content":"` were just seen */
    int line_seen; /* how many bytes of "data:" were just seen at the beginning of a line; -1: none will be */
    int had_first;
    double began_s, first_s;
};

static struct request { char *bytes; size_t length; } *requests;
static size_t request_kinds, asked, wanted, answered, failed, first_tokens;
static size_t events, body_bytes;
static double *latency_ms, *first_ms;
static int epoll, port;
static char first_failure[512];

static void die(const char *what) { perror(what); exit(1); }

static double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void read_requests(const char *file, const char *path) {
    FILE *input = fopen(file, "r");
    if (!input) die(file);
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while ((length = getline(&line, &room, input)) > 0) {
        if (line[length - 1] == '\n') line[--length] = 0;
        requests = realloc(requests, (request_kinds + 1) * sizeof *requests);
        struct request *request = &requests[request_kinds++];
        int bytes = asprintf(&request->bytes,
            "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
            "content-length: %zd\r\n\r\n%s", path, port, length, line);
        if (bytes < 0) die("asprintf");
        request->length = bytes;
    }
    fclose(input);
}

static void watch(struct connection *connection, int how, unsigned for_what) {
    struct epoll_event event = {.events = for_what, .data.ptr = connection};
    if (epoll_ctl(epoll, how, connection->socket, &event)) die("epoll_ctl");
}

static void send_some(struct connection *connection) {
    while (connection->out_bytes) {
        ssize_t sent = send(connection->socket, connection->out, connection->out_bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) { watch(connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT); return; }
        if (sent < 0) die("send");
        connection->out += sent;
        connection->out_bytes -= sent;
        if (!connection->out_bytes) watch(connection, EPOLL_CTL_MOD, EPOLLIN);
    }
}

/* Sends the next request, if any is left. */
static void ask(struct connection *connection) {
    if (asked == wanted) return;
    struct request *request = &requests[asked++ % request_kinds];
    connection->out = request->bytes;
    connection->out_bytes = request->length;
    connection->state = HEAD;
    connection->head_bytes = 0;
    connection->seen = connection->line_seen = connection->had_first = 0;
    connection->began_s = now_s();
    send_some(connection);
}

static void note_first(struct connection *connection) {
    if (connection->had_first || connection->status != 200) return;
    connection->had_first = 1;
    connection->first_s = now_s();
    first_tokens++;
}

/* Looks for events and for the first token in a piece of a body. */
static void scan(struct connection *connection, const char *bytes, size_t length) {
    static const char content[] = "\"content\":\"", data[] = "data:";
    body_bytes += length;
    for (size_t at = 0; at < length; at++) {
        char byte = bytes[at];
        if (byte == '\n') connection->line_seen = 0;
        else if (connection->line_seen >= 0) {
            connection->line_seen = byte == data[connection->line_seen] ? connection->line_seen + 1 : -1;
            if (connection->line_seen == sizeof data - 1) { events++; connection->line_seen = -1; }
        }
        if (connection->had_first) {
            /* Only the beginnings of lines matter from here. */
            if (connection->line_seen < 0) {
                const char *end = memchr(bytes + at, '\n', length - at);
                if (!end) return;
                at = end - bytes - 1;
            }
            continue;
        }
        if (connection->seen == sizeof content - 1) {
            if (byte != '"') note_first(connection);
            connection->seen = 0;
        }
        connection->seen = byte == content[connection->seen] ? connection->seen + 1 : byte == '"';
    }
}

static void reconnect(struct connection *connection);

static void end_of_answer(struct connection *connection) {
    double end_s = now_s();
    if (connection->status == 200) {
        note_first(connection);
        latency_ms[answered] = 1000 * (end_s - connection->began_s);
        first_ms[answered] = 1000 * (connection->first_s - connection->began_s);
        answered++;
    } else failed++;
    if (strcasestr(connection->head, "connection: close")) reconnect(connection);
    ask(connection);
}

/* The head of an answer is whole: what its body is framed by. */
static void read_head(struct connection *connection) {
    connection->head[connection->head_bytes] = 0;
    if (sscanf(connection->head, "HTTP/1.1 %d", &connection->status) != 1) connection->status = 0;
    if (connection->status != 200 && !*first_failure)
        snprintf(first_failure, sizeof first_failure, "%.40s", connection->head); /* The status line. */
    char *length = strcasestr(connection->head, "\r\ncontent-length:");
    connection->state = length ? SIZED : CHUNK_SIZE;
    connection->left_bytes = length ? strtoull(length + 17, NULL, 10) : 0;
    connection->head_bytes = 0;
    if (length && !connection->left_bytes) end_of_answer(connection);
}

/* Takes one byte of a head or of a line of the chunked framing. */
static void take_framing(struct connection *connection, char byte) {
    char *head = connection->head;
    if (connection->head_bytes + 1 >= ANSWER_HEAD_BYTES) { fprintf(stderr, "a head is too long\n"); exit(1); }
    head[connection->head_bytes++] = byte;
    size_t bytes = connection->head_bytes;
    if (byte != '\n') return;
    if (connection->state == HEAD) {
        if (bytes >= 4 && !memcmp(head + bytes - 4, "\r\n\r\n", 4)) read_head(connection);
        return;
    }
    head[bytes] = 0;
    connection->head_bytes = 0;
    if (connection->state == CHUNK_SIZE) {
        connection->left_bytes = strtoull(head, NULL, 16);
        connection->state = connection->left_bytes ? CHUNK : TRAILER;
    } else if (connection->state == CHUNK_END) connection->state = CHUNK_SIZE;
    else if (bytes == 2) end_of_answer(connection);
}

static void take(struct connection *connection, const char *bytes, size_t length) {
    while (length) {
        if (connection->state != SIZED && connection->state != CHUNK) {
            take_framing(connection, *bytes++);
            length--;
            continue;
        }
        size_t piece = length < connection->left_bytes ? length : connection->left_bytes;
        scan(connection, bytes, piece);
        bytes += piece;
        length -= piece;
        if (connection->left_bytes -= piece) continue;
        if (connection->state == CHUNK) connection->state = CHUNK_END;
        else end_of_answer(connection);
    }
}

static void connect_one(struct connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (connection->socket < 0) die("socket");
    if (connect(connection->socket, (struct sockaddr *)&address, sizeof address)) die("connect");
    int yes = 1;
    setsockopt(connection->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(connection->socket, F_SETFL, O_NONBLOCK);
    watch(connection, EPOLL_CTL_ADD, EPOLLIN);
}

static void reconnect(struct connection *connection) {
    close(connection->socket);
    connect_one(connection);
}

static int by_size(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

static double quantile(double *values, double share) {
    if (!answered) return 0;
    qsort(values, answered, sizeof *values, by_size);
    return values[(size_t)(share * (answered - 1))];
}

static void report(double began_s) {
    double wall_s = now_s() - began_s;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_s = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec
        + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    printf("{\"answered\": %zu, \"failed\": %zu, \"first_tokens\": %zu, \"events\": %zu, \"body_bytes\": %zu, "
        "\"wall_s\": %.4f, \"cpu_s\": %.4f, \"latency_ms\": {\"p50\": %.4f, \"p99\": %.4f}, "
        "\"first_ms\": {\"p50\": %.4f, \"p99\": %.4f}, \"first_failure\": \"%.40s\"}\n",
        answered, failed, first_tokens, events, body_bytes, wall_s, cpu_s,
        quantile(latency_ms, .5), quantile(latency_ms, .99), quantile(first_ms, .5), quantile(first_ms, .99),
        strtok(first_failure, "\r\n") ? first_failure : "");
    fflush(stdout);
}

int main(int count, char **arguments) {
    if (count < 6) { fprintf(stderr, "load PORT PATH BODIES CONNECTIONS REQUESTS [hold]\n"); return 64; }
    port = atoi(arguments[1]);
    read_requests(arguments[3], arguments[2]);
    size_t connections = strtoull(arguments[4], NULL, 10);
    wanted = strtoull(arguments[5], NULL, 10);
    int hold = count > 6;
    latency_ms = calloc(wanted, sizeof *latency_ms);
    first_ms = calloc(wanted, sizeof *first_ms);
    struct rlimit files = {connections + 64, connections + 64};
    if (setrlimit(RLIMIT_NOFILE, &files)) die("setrlimit");
    epoll = epoll_create1(0);
    struct connection *all = calloc(connections, sizeof *all);
    for (size_t at = 0; at < connections; at++) connect_one(&all[at]);

    double began_s = now_s();
    for (size_t at = 0; at < connections; at++) ask(&all[at]);
    static char bytes[READ_BYTES];
    struct epoll_event ready[256];
    while (answered + failed < wanted && !(hold && first_tokens + failed >= connections)) {
        int readies = epoll_wait(epoll, ready, 256, 60000);
        if (readies < 0 && errno == EINTR) continue;
        if (readies <= 0) { fprintf(stderr, "no answer for 60 s\n"); break; }
        for (int at = 0; at < readies; at++) {
            struct connection *connection = ready[at].data.ptr;
            if (ready[at].events & EPOLLOUT) send_some(connection);
            if (!(ready[at].events & ~EPOLLOUT)) continue;
            ssize_t length = recv(connection->socket, bytes, sizeof bytes, 0);
            if (length < 0 && errno == EAGAIN) continue;
            if (length <= 0) { fprintf(stderr, "a connection was closed within an answer\n"); return 1; }
            take(connection, bytes, length);
        }
    }
    report(began_s);
    if (hold) while (read(0, bytes, sizeof bytes) > 0) {}
    return 0;
}
