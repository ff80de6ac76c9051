/* What a streamed token costs at the least: a server that answers each request with paced writes of
 * 260 bytes, one per token, and does nothing else. One thread.
 *
 *     bare TOKENS STEP_US
 *
 * Says its port. Each STEP_US microseconds, every connection that asked gets one write, TOKENS in all;
 * a write is a whole chunk of HTTP's chunked encoding with one server-sent event. A connection that asks
 * within a step gets its first write in the next one.
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
#include <sys/timerfd.h>
#include <unistd.h>

enum { WRITE_BYTES = 260, SOCKETS_MAX = 16384, REQUEST_BYTES_MAX = 65536 };

static const char HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
static const char END[] = "0\r\n\r\n";
static char token[WRITE_BYTES];
static int left[SOCKETS_MAX]; /* writes that a socket still gets */
static int socket_max;

static void die(const char *what) { perror(what); exit(1); }

/* "fc\r\n" + payload + "\r\n", 260 bytes in all. */
static void make_token(void) {
    int payload = WRITE_BYTES - 6;
    memset(token, 'x', sizeof token);
    memcpy(token, "fe\r\n", 4);
    static const char event[] = "data: {\"choices\":[{\"delta\":{\"content\":\"xxxx";
    memcpy(token + 4, event, sizeof event - 1);
    memcpy(token + 4 + payload - 6, "\"}]}\n\n", 6);
    memcpy(token + 4 + payload, "\r\n", 2);
}

static void put(int socket, const char *bytes, size_t length) {
    if (send(socket, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) die("send");
}

static void accept_one(int listener, int epoll) {
    int socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (socket < 0 || socket >= SOCKETS_MAX) die("accept");
    int yes = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = socket};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event)) die("epoll_ctl");
    if (socket > socket_max) socket_max = socket;
}

/* A request is whole when its JSON ends; requests follow one another only after the answer's end. */
static void read_request(int socket, int tokens) {
    static char bytes[REQUEST_BYTES_MAX];
    ssize_t length = recv(socket, bytes, sizeof bytes, 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) { close(socket); left[socket] = 0; return; }
    if (bytes[length - 1] != '}') return;
    put(socket, HEAD, sizeof HEAD - 1);
    left[socket] = tokens;
}

static void step(void) {
    for (int socket = 0; socket <= socket_max; socket++) {
        if (!left[socket]) continue;
        put(socket, token, sizeof token);
        if (!--left[socket]) put(socket, END, sizeof END - 1);
    }
}

int main(int count, char **arguments) {
    if (count != 3) { fprintf(stderr, "bare TOKENS STEP_US\n"); return 64; }
    int tokens = atoi(arguments[1]);
    long step_us = atol(arguments[2]);
    make_token();
    struct rlimit files = {SOCKETS_MAX, SOCKETS_MAX};
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 4096)) die("bind");
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct timespec each = {step_us / 1000000, step_us % 1000000 * 1000};
    struct itimerspec times = {each, each};
    if (timerfd_settime(timer, 0, &times, NULL)) die("timerfd");
    for (int *file = (int[]){listener, timer, -1}; *file >= 0; file++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = *file};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, *file, &event)) die("epoll_ctl");
    }
    struct epoll_event ready[256];
    for (;;) {
        int readies = epoll_wait(epoll, ready, 256, -1);
        for (int at = 0; at < readies; at++) {
            int file = ready[at].data.fd;
            unsigned long long times_up;
            if (file == listener) accept_one(listener, epoll);
            else if (file != timer) read_request(file, tokens);
            else if (read(timer, &times_up, sizeof times_up) > 0) step();
        }
    }
}
