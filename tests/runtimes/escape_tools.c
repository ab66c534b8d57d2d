/* What a hostile image would bring along: static, so that it needs nothing of the image.
 *
 *   calls NAME:NUMBER[:ARGUMENT,…] …   make system calls, print NAME and the error (0: none)
 *   have DESCRIPTOR                    try to write to the file that the loader has got hold of
 *   watch SECONDS                      get hold of every process's /proc/PID/exe and try to write to it
 *   descriptors                        print what is open
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void make_call(char *text)
{
    long arguments[6] = {0};
    char *name = strsep(&text, ":"), *number = strsep(&text, ":"), *word;
    for (int i = 0; i < 6 && (word = strsep(&text, ",")) != NULL; i++)
        arguments[i] = *word == '/' ? (long)word : strtol(word, NULL, 0);
    errno = 0;
    long result = syscall(atol(number), arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    printf("%s %s\n", name, result == -1 ? strerrorname_np(errno) : "0");
    fflush(stdout);
}

/* Try to write to the file that `held` (O_PATH) is of; nothing is changed: the same byte is written back. */
static int try_to_write(int held, const char *what)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", held);
    int fd = open(path, O_RDWR);
    if (fd == -1)
        return errno;
    char byte;
    if (pread(fd, &byte, 1, 0) == 1 && pwrite(fd, &byte, 1, 0) == 1)
        printf("WRITTEN %s\n", what);
    close(fd);
    return 0;
}

static int is_ours(int held, const char *own)
{
    struct stat there, here;
    return fstat(held, &there) == 0 && stat(own, &here) == 0 && there.st_ino == here.st_ino && there.st_dev == here.st_dev;
}

static int have(const char *own, const char *number)
{
    int held = atoi(number);
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%s", number);
    if (*number == '-' || readlink(path, text, sizeof text - 1) < 0 || is_ours(held, own)) {
        printf("nothing to steal\n");
        return 0;
    }
    printf("STOLEN %s\n", text);
    fflush(stdout);
    for (int i = 0; i < 500 && try_to_write(held, text) != 0; i++) /* whoever is executed from it must end first */
        usleep(1000);
    return 0;
}

static int watch(const char *own, double seconds)
{
    long seen = 0;
    printf("watching\n");
    fflush(stdout);
    for (double end = now() + seconds; now() < end;) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(proc)) != NULL;) {
            char path[300];
            if (*entry->d_name < '1' || *entry->d_name > '9')
                continue;
            snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
            int held = open(path, O_PATH);
            if (held == -1)
                continue;
            if (!is_ours(held, own) && !is_ours(held, "/bin/busybox")) {
                char text[512] = "";
                readlink(path, text, sizeof text - 1);
                printf("STOLEN %s\n", text);
                for (int i = 0; i < 1000 && try_to_write(held, text) != 0; i++)
                    usleep(1000);
            }
            close(held);
            seen++;
        }
        closedir(proc);
    }
    printf("looked %ld times\n", seen);
    return 0;
}

static int descriptors(void)
{
    for (int fd = 0; fd < 4096; fd++) {
        char path[64], text[512] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (fcntl(fd, F_GETFD) != -1 && readlink(path, text, sizeof text - 1) > 0)
            printf("%d %s\n", fd, text);
    }
    return 0;
}

int main(int count, char **words)
{
    const char *own = "/tools";
    if (count > 1 && strcmp(words[1], "calls") == 0) {
        for (int i = 2; i < count; i++)
            make_call(words[i]);
        return 0;
    }
    if (count > 2 && strcmp(words[1], "watch") == 0)
        return watch(own, atof(words[2]));
    if (count > 1 && strcmp(words[1], "descriptors") == 0)
        return descriptors();
    if (count > 2 && strcmp(words[1], "have") == 0)
        return have(own, words[2]);
    return 2;
}
