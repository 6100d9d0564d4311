/* The service in the container: answers every HTTP request with the version of its image. /mode says how it behaves:
 * good, sick (answers 503), crash (ends at once), ends-126, ends-127, deaf (ignores SIGTERM and SIGHUP), slow (listens after 2 s), hostile
 * (tries to get out first; see tries.c). */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void tries(const char *report);

static void text(const char *path, char *into, size_t size) {
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? 0 : read(fd, into, size - 1);
    into[got < 0 ? 0 : got] = 0;
    into[strcspn(into, "\n")] = 0;
}

int main(int argc, char **argv) {
    char mode[32], version[32], line[256], request[1024];
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1])) };
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    text("/mode", mode, sizeof mode);
    /* As a probe inside: ends with 0 where all is well. */
    if (argc > 1 && !strcmp(argv[1], "--check")) return strcmp(mode, "good") != 0;
    if (argc > 1 && !strcmp(argv[1], "--tries")) { tries("/state/probe.report"); return 0; }
    text("/version", version, sizeof version);
    FILE *log = fopen("/state/starts", "a");
    if (log) { fprintf(log, "%s\n", version); fclose(log); }
    if (!strcmp(mode, "crash")) return 7;
    if (!strncmp(mode, "ends-", 5)) return atoi(mode + 5);
    if (!strcmp(mode, "deaf")) { signal(SIGTERM, SIG_IGN); signal(SIGHUP, SIG_IGN); }
    if (!strcmp(mode, "slow")) sleep(2);
    if (!strcmp(mode, "hostile")) tries("/state/report");
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&at, sizeof at) || listen(server, 128)) { perror("bind"); return 8; }
    for (;;) {
        int client = accept(server, NULL, NULL);
        if (client < 0) continue;
        (void)!read(client, request, sizeof request);
        const char *status = strcmp(mode, "sick") ? "200 OK" : "503 sick";
        int len = snprintf(line, sizeof line, "HTTP/1.0 %s\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(version), version);
        (void)!write(client, line, len);
        close(client);
    }
}
