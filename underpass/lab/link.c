/* SPDX-License-Identifier: Apache-2.0
 *
 * A cable between two TAP devices that loses, doubles and delays frames:
 *
 *     link DEVICE_A DEVICE_B LOSS DUPLICATE LATE LATE_US SEED [SPARE]...
 *
 * LOSS, DUPLICATE and LATE are shares of a million; LATE_US is the mean delay of late frames in microseconds, which
 * therefore arrive behind later ones. Only TCP over IPv4 and IPv6 suffers, and not to or from the addresses SPARE (the
 * management traffic of the lab). The devices carry no virtio header on purpose: the kernel has to cut its
 * super-packets and to compute every checksum before a frame comes here, and to verify it behind, as on a real cable.
 *
 * On SIGUSR1 and at the end it prints its counters to standard error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define FRAME (65536 + 64)
#define WAITING 8192
#define BURST 64
#define SPARES 8

struct frame {
	int64_t due;
	int to;
	int size;
	unsigned char *bytes;
};

struct spare {
	int size;
	unsigned char bytes[16];
};

/* Late frames, a binary heap by the time that they are due. */
static struct frame heap[WAITING];
static int heap_size;
static struct spare spares[SPARES];
static int spare_count;
static unsigned long frames, lost, doubled, late, refused;
static volatile sig_atomic_t stop, report;
static uint64_t random_state;

static void on_signal(int number)
{
	if (number == SIGUSR1)
		report = 1;
	else
		stop = 1;
}

/* xorshift64*: the same seed gives the same misfortune. */
static uint32_t random_u32(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (uint32_t)((random_state * 0x2545F4914F6CDD1DULL) >> 32);
}

static int chance(uint32_t millionths)
{
	return random_u32() % 1000000u < millionths;
}

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int open_tap(const char *name)
{
	struct ifreq request;
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0) {
		fprintf(stderr, "link: /dev/net/tun: %s\n", strerror(errno));
		exit(1);
	}
	memset(&request, 0, sizeof(request));
	request.ifr_flags = IFF_TAP | IFF_NO_PI;
	snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
	if (ioctl(fd, TUNSETIFF, &request)) {
		fprintf(stderr, "link: %s: %s\n", name, strerror(errno));
		exit(1);
	}
	return fd;
}

static int is_spare(const unsigned char *address, int size)
{
	for (int i = 0; i < spare_count; i++)
		if (spares[i].size == size && !memcmp(spares[i].bytes, address, size))
			return 1;
	return 0;
}

/* Whether misfortune may meet this frame. */
static int suffers(const unsigned char *frame, int size)
{
	int type = size >= 14 ? frame[12] << 8 | frame[13] : 0;

	if (type == ETH_P_IP && size >= 34)
		return frame[23] == IPPROTO_TCP && !is_spare(frame + 26, 4) && !is_spare(frame + 30, 4);
	if (type == ETH_P_IPV6 && size >= 54)
		return frame[20] == IPPROTO_TCP && !is_spare(frame + 22, 16) && !is_spare(frame + 38, 16);
	return 0;
}

static void swap(int a, int b)
{
	struct frame kept = heap[a];

	heap[a] = heap[b];
	heap[b] = kept;
}

static int push(const unsigned char *bytes, int size, int to, int64_t due)
{
	unsigned char *copy = heap_size < WAITING ? malloc(size) : NULL;

	if (!copy)
		return 0;
	memcpy(copy, bytes, size);
	heap[heap_size] = (struct frame){ .due = due, .to = to, .size = size, .bytes = copy };
	for (int i = heap_size++; i && heap[i].due < heap[(i - 1) / 2].due; i = (i - 1) / 2)
		swap(i, (i - 1) / 2);
	return 1;
}

static struct frame pop(void)
{
	struct frame first = heap[0];
	int i = 0;

	heap[0] = heap[--heap_size];
	for (;;) {
		int child = 2 * i + 1;

		if (child + 1 < heap_size && heap[child + 1].due < heap[child].due)
			child++;
		if (child >= heap_size || heap[i].due <= heap[child].due)
			return first;
		swap(i, child);
		i = child;
	}
}

static void send_frame(int fd, const unsigned char *bytes, int size)
{
	/* A device that is down or full refuses: a cable loses frames then. */
	if (write(fd, bytes, size) != size)
		refused++;
}

static void print_counters(void)
{
	fprintf(stderr, "frames %lu lost %lu doubled %lu late %lu refused %lu\n", frames, lost, doubled, late, refused);
	fflush(stderr);
}

int main(int argc, char **argv)
{
	static unsigned char bytes[FRAME];
	struct sigaction action = { .sa_handler = on_signal };
	struct pollfd polled[2];
	uint32_t loss, duplicate, lateness, late_us;

	if (argc < 8) {
		fprintf(stderr, "usage: link DEVICE_A DEVICE_B LOSS DUPLICATE LATE LATE_US SEED [SPARE]...\n");
		return 2;
	}
	loss = strtoul(argv[3], NULL, 10);
	duplicate = strtoul(argv[4], NULL, 10);
	lateness = strtoul(argv[5], NULL, 10);
	late_us = strtoul(argv[6], NULL, 10);
	random_state = strtoull(argv[7], NULL, 10) * 2 + 1;
	for (int i = 8; i < argc && spare_count < SPARES; i++) {
		struct spare *spare = &spares[spare_count++];
		int family = strchr(argv[i], ':') ? AF_INET6 : AF_INET;

		spare->size = family == AF_INET ? 4 : 16;
		if (inet_pton(family, argv[i], spare->bytes) != 1) {
			fprintf(stderr, "link: %s is no address\n", argv[i]);
			return 2;
		}
	}
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < 2; i++) {
		polled[i].fd = open_tap(argv[1 + i]);
		polled[i].events = POLLIN;
	}
	puts("ready");
	fflush(stdout);
	while (!stop) {
		int64_t now = now_us();
		int wait = heap_size ? (int)((heap[0].due - now + 999) / 1000) : 1000;

		if (report) {
			report = 0;
			print_counters();
		}
		poll(polled, 2, wait < 0 ? 0 : wait);
		now = now_us();
		while (heap_size && heap[0].due <= now) {
			struct frame frame = pop();

			send_frame(polled[frame.to].fd, frame.bytes, frame.size);
			free(frame.bytes);
		}
		for (int from = 0; from < 2; from++) {
			for (int k = 0; k < BURST; k++) {
				int size = read(polled[from].fd, bytes, sizeof(bytes));
				int hit, to = !from;

				if (size <= 0)
					break;
				frames++;
				hit = suffers(bytes, size);
				if (hit && chance(loss)) {
					lost++;
					continue;
				}
				if (hit && chance(lateness) &&
				    push(bytes, size, to, now + late_us / 2 + random_u32() % (late_us + 1))) {
					late++;
					continue;
				}
				send_frame(polled[to].fd, bytes, size);
				if (hit && chance(duplicate)) {
					doubled++;
					send_frame(polled[to].fd, bytes, size);
				}
			}
		}
	}
	print_counters();
	return 0;
}
