/* Load an SMTP server on 127.0.0.1: one thread, epoll, a fixed number of sessions at once.
 *
 *   cc -O2 -o load load.c -lssl -lcrypto        (bench/generator.py does it)
 *   load -c 20 -n 100 -s 4096 -t 3 -d example.test 2525
 *
 * No message is begun after -t seconds; what is under way is finished, so `seconds` lasts to the last
 * reply. Latency runs from the write of the DATA line (or of the group that ends with it) to the reply
 * behind the content; with -r from RCPT to its reply. The result is one JSON object. With -i the sessions stop behind EHLO, "open" is
 * printed, and they stay until standard input is closed. With -f messages come from a file, in turns: for each a line
 * "sender octets", and so many octets, the final dot included; -s only says how many to report. */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAILBOXES 20
#define MAX_SAMPLES 4000000
#define MAX_FAILURES 100 /* then something is wrong with the server, and the figures are worth nothing */
#define GRACE 60         /* seconds behind the end of the run */
#define AT_ONCE 100      /* connections being opened at once while they are only to be held */

enum step { CONNECT, HANDSHAKE, GREETING, EHLO, STARTTLS, MAIL, RCPT, DATA, CONTENT, QUIT, HELD, CLOSED };

static const char *const step_names[] = {"connect", "handshake", "greeting", "EHLO",    "STARTTLS", "MAIL",
                                         "RCPT",    "DATA",      "content",  "QUIT", "held",     "closed"};
/* First digit of the reply that each step hopes for. */
static const char hoped[] = {0, 0, '2', '2', '2', '2', '2', '3', '2', '2', 0, 0};

struct letter {
  char *sender, *octets;
  size_t size;
};

struct session {
  enum step step;
  int fd, messages, waits_to_write;
  const struct letter *letter;
  SSL *tls;
  struct iovec out[2];
  size_t filled;
  double asked;
  char text[512], in[4096];
};

static struct {
  int port, sessions, messages, pipelined, starttls, hold, at_recipient;
  size_t size;
  double seconds;
  const char *domain, *letters;
} options = {.sessions = 1, .messages = 1, .size = 4096, .seconds = 1, .domain = "bench.test"};

static struct {
  long accepted, sessions, held, refused, failed, samples;
  double begun, last;
  char problem[200];
} result;

static int poller, active;
static long serial;
static char *body;
static size_t body_size;
static float *samples;
static SSL_CTX *context;
static struct letter *letters; /* none without -f */
static size_t letter_count, next_letter;

static void handle(struct session *session);

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static void die(const char *what) {
  perror(what);
  exit(2);
}

/* Lines of 78 octets, every fiftieth begins with a dot that must be doubled, and the final dot. */
static void make_body(void) {
  uint32_t random = 2463534242u;
  body = malloc(options.size + 512);
  if (body == NULL) die("malloc");
  for (long line = 1; body_size < options.size; line++) {
    for (int column = 0; column < 76; column++) {
      random ^= random << 13, random ^= random >> 17, random ^= random << 5;
      body[body_size++] = 'A' + random % 26;
    }
    if (line % 50 == 0) body[body_size - 76] = body[body_size - 75] = '.';
    body[body_size++] = '\r', body[body_size++] = '\n';
  }
  memcpy(body + body_size, ".\r\n", 3);
  body_size += 3;
}

/* Read all messages of the file, which stay in memory. */
static void read_letters(void) {
  FILE *file = fopen(options.letters, "rb");
  char sender[256];
  size_t size;
  if (file == NULL) die(options.letters);
  while (fscanf(file, "%255s %zu", sender, &size) == 2 && fgetc(file) == '\n') {
    letters = realloc(letters, (letter_count + 1) * sizeof *letters);
    if (letters == NULL) die("realloc");
    struct letter *letter = letters + letter_count++;
    *letter = (struct letter){strdup(sender), malloc(size), size};
    if (letter->octets == NULL || fread(letter->octets, 1, size, file) != size) die(options.letters);
  }
  fclose(file);
  if (letter_count == 0) die(options.letters);
}

static int time_is_up(void) { return now() - result.begun >= options.seconds; }

static void watch(struct session *session, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = session};
  if (epoll_ctl(poller, operation, session->fd, &event) < 0) die("epoll_ctl");
}

static void open_session(struct session *session) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.port)};
  int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) die("connect");
  memset(session, 0, offsetof(struct session, text));
  session->fd = fd;
  session->step = CONNECT;
  session->waits_to_write = 1;
  watch(session, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
  active++;
}

static void close_session(struct session *session) {
  if (session->tls) SSL_free(session->tls);
  session->tls = NULL;
  close(session->fd);
  session->step = CLOSED;
  active--;
  result.sessions++;
  if (!options.hold && !time_is_up() && result.failed < MAX_FAILURES) open_session(session);
}

static void note(const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(result.problem, sizeof result.problem, format, values);
  va_end(values);
}

static void fail(struct session *session, const char *why) {
  result.failed++;
  note("%s: %s", step_names[session->step], why);
  close_session(session);
}

static void want_to_write(struct session *session, int wanted) {
  if (session->waits_to_write == wanted) return;
  session->waits_to_write = wanted;
  watch(session, EPOLL_CTL_MOD, wanted ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Octets written of what is left; -1: none now; -2: the connection is gone. */
static ssize_t write_some(struct session *session) {
  if (session->tls) {
    struct iovec *piece = session->out[0].iov_len ? session->out : session->out + 1;
    size_t size = piece->iov_len < 1 << 20 ? piece->iov_len : 1 << 20;
    int written = SSL_write(session->tls, piece->iov_base, (int)size);
    if (written > 0) return written;
    int why = SSL_get_error(session->tls, written);
    return why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ ? -1 : -2;
  }
  struct msghdr message = {.msg_iov = session->out, .msg_iovlen = 2};
  ssize_t written = sendmsg(session->fd, &message, MSG_NOSIGNAL);
  return written >= 0 ? written : errno == EAGAIN ? -1 : -2;
}

static void flush(struct session *session) {
  while (session->out[0].iov_len + session->out[1].iov_len) {
    ssize_t written = write_some(session);
    if (written == -2) {
      fail(session, "connection lost");
      return;
    }
    if (written == -1) {
      want_to_write(session, 1);
      return;
    }
    for (int index = 0; index < 2; index++) {
      struct iovec *piece = session->out + index;
      size_t part = (size_t)written < piece->iov_len ? (size_t)written : piece->iov_len;
      piece->iov_base = (char *)piece->iov_base + part;
      piece->iov_len -= part;
      written -= part;
    }
  }
  want_to_write(session, 0);
}

static void say(struct session *session, enum step step, const char *format, ...) {
  va_list values;
  va_start(values, format);
  int length = vsnprintf(session->text, sizeof session->text, format, values);
  va_end(values);
  session->step = step;
  session->out[0] = (struct iovec){session->text, length};
  session->out[1].iov_len = 0;
  flush(session);
}

static void next_message(struct session *session) {
  if (session->messages == options.messages || time_is_up()) {
    say(session, QUIT, "QUIT\r\n");
    return;
  }
  session->messages++;
  session->letter = letters ? letters + next_letter++ % letter_count : NULL;
  const char *sender = session->letter ? session->letter->sender : "sender@client.test";
  if (!options.pipelined) {
    say(session, MAIL, "MAIL FROM:<%s>\r\n", sender);
    return;
  }
  session->asked = now();
  say(session, MAIL, "MAIL FROM:<%s>\r\nRCPT TO:<user%ld@%s>\r\nDATA\r\n", sender, serial++ % MAILBOXES,
      options.domain);
}

static void send_content(struct session *session) {
  if (session->letter) {
    session->step = CONTENT;
    session->out[0].iov_len = 0;
    session->out[1] = (struct iovec){session->letter->octets, session->letter->size};
    flush(session);
    return;
  }
  int length = snprintf(session->text, sizeof session->text,
                        "From: Sender <sender@client.test>\r\nTo: User <user@%s>\r\nSubject: A message to measure\r\n"
                        "Date: Mon, 01 Jun 2026 12:00:00 +0000\r\nMessage-ID: <%d.%ld@client.test>\r\n"
                        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n",
                        options.domain, (int)getpid(), serial);
  /* Header and body together have the wanted size; the final dot comes on top. */
  size_t skipped = (size_t)length < options.size ? length - length % 78 : 0;
  session->step = CONTENT;
  session->out[0] = (struct iovec){session->text, length};
  session->out[1] = (struct iovec){body + skipped, body_size - skipped};
  flush(session);
}

static void shake_hands(struct session *session) {
  int done = SSL_do_handshake(session->tls);
  if (done == 1) {
    say(session, EHLO, "EHLO client.test\r\n");
    return;
  }
  int why = SSL_get_error(session->tls, done);
  if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
    want_to_write(session, why == SSL_ERROR_WANT_WRITE);
  else
    fail(session, ERR_reason_error_string(ERR_peek_last_error()));
}

static void hold(struct session *session) {
  session->step = HELD;
  if (++result.held == options.sessions) {
    puts("open");
    fflush(stdout);
  }
}

static void take_sample(struct session *session) {
  if (result.samples < MAX_SAMPLES) samples[result.samples++] = now() - session->asked;
}

static void accepted(struct session *session) {
  result.last = now();
  result.accepted++;
  if (!options.at_recipient) take_sample(session);
  next_message(session);
}

/* One reply: the next thing to say. */
static void answer(struct session *session, const char *line) {
  if (line[0] != hoped[session->step]) {
    result.refused++;
    note("%s: %.150s", step_names[session->step], line);
    if (session->step == QUIT) close_session(session);
    else say(session, QUIT, "QUIT\r\n");
    return;
  }
  switch (session->step) {
    case GREETING: say(session, EHLO, "EHLO client.test\r\n"); break;
    case EHLO:
      if (options.starttls && !session->tls) say(session, STARTTLS, "STARTTLS\r\n");
      else if (options.hold) hold(session);
      else next_message(session);
      break;
    case STARTTLS:
      session->tls = SSL_new(context);
      SSL_set_fd(session->tls, session->fd);
      SSL_set_connect_state(session->tls);
      session->step = HANDSHAKE;
      shake_hands(session);
      break;
    case MAIL:
      session->step = RCPT;
      if (options.at_recipient) session->asked = now();
      if (!options.pipelined) say(session, RCPT, "RCPT TO:<user%ld@%s>\r\n", serial++ % MAILBOXES, options.domain);
      break;
    case RCPT:
      session->step = DATA;
      if (options.pipelined) break;
      if (options.at_recipient) take_sample(session);
      else session->asked = now();
      say(session, DATA, "DATA\r\n");
      break;
    case DATA: send_content(session); break;
    case CONTENT: accepted(session); break;
    case QUIT:
      if (!options.messages) result.accepted++, result.last = now();
      close_session(session);
      break;
    default: break;
  }
}

/* Answer every complete reply in the buffer; 0 when the session is not the same any more. */
static int answer_all(struct session *session) {
  int fd = session->fd;
  long before = result.sessions;
  char *line = session->in, *end;
  while ((end = memchr(line, '\n', session->in + session->filled - line))) {
    int is_last = end - line < 4 || line[3] != '-';
    *end = 0;
    if (is_last) answer(session, line);
    if (session->fd != fd || result.sessions != before || session->step == HANDSHAKE) return 0;
    line = end + 1;
  }
  session->filled -= line - session->in;
  memmove(session->in, line, session->filled);
  return 1;
}

static void receive(struct session *session) {
  do {
    char *free_space = session->in + session->filled;
    int room = (int)(sizeof session->in - session->filled);
    ssize_t size = session->tls ? SSL_read(session->tls, free_space, room) : recv(session->fd, free_space, room, 0);
    if (size <= 0) {
      int again = session->tls ? SSL_get_error(session->tls, (int)size) == SSL_ERROR_WANT_READ
                               : size < 0 && errno == EAGAIN;
      if (!again) fail(session, "connection lost");
      return;
    }
    session->filled += size;
    if (!answer_all(session)) return;
  } while (session->tls && SSL_pending(session->tls));
}

static void handle(struct session *session) {
  if (session->step == CLOSED) return;
  if (session->step == CONNECT) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(session->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
      fail(session, strerror(error));
      return;
    }
    session->step = GREETING;
    want_to_write(session, 0);
  } else if (session->step == HANDSHAKE) {
    session->filled = 0;
    shake_hands(session);
  } else if (session->waits_to_write) {
    long before = result.sessions;
    flush(session);
    if (result.sessions == before) receive(session);
  } else {
    receive(session);
  }
}

static int by_size(const void *left, const void *right) {
  float a = *(const float *)left, b = *(const float *)right;
  return (a > b) - (a < b);
}

static double quantile(double part) {
  return result.samples ? samples[(long)(part * (result.samples - 1) + 0.5)] * 1000.0 : 0;
}

static void report(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double processor = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  qsort(samples, result.samples, sizeof *samples, by_size);
  for (char *c = result.problem; *c; c++)
    if (*c < ' ' || *c == '"' || *c == '\\') *c = ' ';
  printf("{\"accepted\": %ld, \"sessions\": %ld, \"begun\": %.4f, \"seconds\": %.4f, \"cpu_seconds\": %.4f, \"octets\": %zu,"
         " \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"refused\": %ld, \"failed\": %ld, \"problem\": \"%s\"}\n",
         result.accepted, result.sessions, result.begun, result.last > 0 ? result.last - result.begun : 0, processor, options.size,
         quantile(0.5), quantile(0.99), result.refused, result.failed, result.problem);
}

static void read_options(int count, char **values) {
  int option;
  while ((option = getopt(count, values, "c:n:s:t:d:f:prTi")) != -1) switch (option) {
      case 'c': options.sessions = atoi(optarg); break;
      case 'n': options.messages = atoi(optarg); break;
      case 's': options.size = strtoul(optarg, NULL, 10); break;
      case 't': options.seconds = atof(optarg); break;
      case 'd': options.domain = optarg; break;
      case 'f': options.letters = optarg; break;
      case 'p': options.pipelined = 1; break;
      case 'r': options.at_recipient = 1; break;
      case 'T': options.starttls = 1; break;
      case 'i': options.hold = 1; break;
      default: exit(2);
    }
  options.port = optind < count ? atoi(values[optind]) : 0;
  if (!options.port || options.sessions < 1 || strlen(options.domain) > 100 || options.size > 1 << 30) {
    fputs("usage: load [-c sessions] [-n messages] [-s octets] [-t seconds] [-d domain] [-f file] [-prTi] port\n", stderr);
    exit(2);
  }
}

static void wait_for_end_of_input(void) {
  char octet;
  while (read(0, &octet, 1) > 0) continue;
}

int main(int count, char **values) {
  read_options(count, values);
  make_body();
  if (options.letters) read_letters();
  alarm((unsigned)options.seconds + GRACE);
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  poller = epoll_create1(EPOLL_CLOEXEC);
  struct session *sessions = calloc(options.sessions, sizeof *sessions);
  samples = calloc(MAX_SAMPLES, sizeof *samples);
  if (sessions == NULL || samples == NULL) die("calloc");
  result.begun = now();
  int opened = 0;
  do {
    while (opened < options.sessions && (!options.hold || opened - result.held < AT_ONCE))
      open_session(sessions + opened++);
    struct epoll_event events[256];
    int ready = epoll_wait(poller, events, 256, 1000);
    for (int index = 0; index < ready; index++) handle(events[index].data.ptr);
  } while (options.hold ? result.held + result.failed + result.refused < options.sessions : active > 0);
  if (options.hold) wait_for_end_of_input();
  report();
  return 0;
}
