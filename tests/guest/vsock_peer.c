/* The guest's half of the stream tests.
 *
 *   vsock_peer echo PORT         accept on PORT, send each connection's bytes back, in a process each
 *   vsock_peer sink PORT         accept on PORT, read to the end, answer with the count, in decimal
 *   vsock_peer source PORT SIZE  accept on PORT, send SIZE bytes of a counter pattern, then close
 *   vsock_peer dial PORT         connect to the host's PORT, send what standard input has, then
 *                                print what comes back
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* vsock(7). Declared here, since musl-gcc does not see the kernel's <linux/vm_sockets.h>. */
#define VMADDR_CID_ANY 0xFFFFFFFFu
#define VMADDR_CID_HOST 2u
struct sockaddr_vm {
	sa_family_t svm_family;
	unsigned short svm_reserved1;
	unsigned svm_port;
	unsigned svm_cid;
	unsigned char svm_zero[4];
};

static char buffer[65536];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void write_all(int fd, const char *data, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, data, length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			fail("write");
		data += n;
		length -= (size_t)n;
	}
}

static ssize_t read_some(int fd)
{
	ssize_t n;
	do {
		n = read(fd, buffer, sizeof buffer);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		fail("read");
	return n;
}

static void echo(int fd)
{
	ssize_t n;
	while ((n = read_some(fd)) > 0)
		write_all(fd, buffer, (size_t)n);
}

static void sink(int fd)
{
	unsigned long long total = 0;
	char answer[32];
	ssize_t n;
	while ((n = read_some(fd)) > 0)
		total += (unsigned long long)n;
	n = snprintf(answer, sizeof answer, "%llu", total);
	write_all(fd, answer, (size_t)n);
}

static void source(int fd, unsigned long long size)
{
	for (size_t i = 0; i < sizeof buffer; i++)
		buffer[i] = (char)(i % 251);
	while (size > 0) {
		size_t n = size < sizeof buffer ? (size_t)size : sizeof buffer;
		write_all(fd, buffer, n);
		size -= n;
	}
}

static int dial(unsigned port)
{
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	ssize_t n;
	if (connect(fd, (struct sockaddr *)&host, sizeof host) != 0)
		fail("connect");
	while ((n = read_some(0)) > 0)
		write_all(fd, buffer, (size_t)n);
	shutdown(fd, SHUT_WR);
	while ((n = read_some(fd)) > 0)
		write_all(1, buffer, (size_t)n);
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY};
	int listener;
	if (argc < 3)
		return 2;
	if (strcmp(argv[1], "dial") == 0)
		return dial((unsigned)atoi(argv[2]));
	signal(SIGCHLD, SIG_IGN);
	here.svm_port = (unsigned)atoi(argv[2]);
	listener = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) != 0 || listen(listener, 128) != 0)
		fail("listen");
	puts("listening");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			fail("accept");
		if (fork() == 0) {
			if (strcmp(argv[1], "echo") == 0)
				echo(fd);
			else if (strcmp(argv[1], "sink") == 0)
				sink(fd);
			else
				source(fd, strtoull(argv[3], NULL, 10));
			_exit(0);
		}
		close(fd);
	}
}
