/* A stand-in for ExecuTorch's llama_main: takes its flags (release 1.5), checks that the files are there, holds memory,
 * sleeps instead of computing, prints text and the statistics line. /phone/native may name a fault and the run (counted
 * from 1 in /phone/native.count) that it is due in: "crash 3", "killed 3", "silent 3", "stall 3", "refuse 3". */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MEGABYTES = 64 };

static long now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000L + t.tv_nsec / 1000000L;
}

static const char *flag(int argc, char **argv, const char *name) {
  size_t length = strlen(name);
  for (int i = 1; i < argc; i++)
    if (!strncmp(argv[i], "--", 2) && !strncmp(argv[i] + 2, name, length) && argv[i][2 + length] == '=')
      return argv[i] + 3 + length;
  fprintf(stderr, "E executorch: no flag %s\n", name);
  exit(1);
}

static FILE *opened(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    fprintf(stderr, "E executorch: cannot open %s\n", path);
    exit(1);
  }
  return file;
}

static int words(const char *path) {
  FILE *file = opened(path);
  int count = 0, inside = 0, c;
  while ((c = fgetc(file)) != EOF) {
    int word = c > ' ';
    count += word && !inside;
    inside = word;
  }
  fclose(file);
  return count;
}

static int due(const char *fault, int run) {
  char name[16] = "";
  int at = 0;
  FILE *file = fopen("/phone/native", "r");
  if (!file) return 0;
  int read = fscanf(file, "%15s %d", name, &at);
  fclose(file);
  return read == 2 && at == run && !strcmp(name, fault);
}

static int count_run(void) {
  int run = 0;
  FILE *file = fopen("/phone/native.count", "r");
  if (file) {
    if (fscanf(file, "%d", &run) != 1) run = 0;
    fclose(file);
  }
  file = fopen("/phone/native.count", "w");
  fprintf(file, "%d", ++run);
  fclose(file);
  return run;
}

int main(int argc, char **argv) {
  int run = count_run();
  fclose(opened(flag(argc, argv, "model_path")));
  fclose(opened(flag(argc, argv, "tokenizer_path")));
  int prompt = words(flag(argc, argv, "prompt_file")), generated = atoi(flag(argc, argv, "max_new_tokens"));
  if (atof(flag(argc, argv, "temperature")) != 0) return 1;
  if (due("refuse", run)) {
    fprintf(stderr, "E executorch: Failed to load method forward: 0x20\n");
    return 1;
  }
  long load_start = now_ms();
  char *held = malloc((size_t)MEGABYTES << 20);
  memset(held, 1, (size_t)MEGABYTES << 20);
  usleep(300000);
  if (due("killed", run)) raise(SIGKILL);
  if (due("crash", run)) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    raise(SIGSEGV);
  }
  if (due("stall", run)) sleep(3600);
  long load_end = now_ms(), start = load_end;
  usleep(100000);
  long first = now_ms();
  printf("and so the harbour slept.");
  usleep(200000);
  long end = now_ms();
  if (!due("silent", run))
    printf("\nPyTorchObserver {\"prompt_tokens\":%d,\"generated_tokens\":%d,\"model_load_start_ms\":%ld,"
           "\"model_load_end_ms\":%ld,\"inference_start_ms\":%ld,\"inference_end_ms\":%ld,\"prompt_eval_end_ms\":%ld,"
           "\"first_token_ms\":%ld,\"aggregate_sampling_time_ms\":3,\"SCALING_FACTOR_UNITS_PER_SECOND\":1000}\n",
           prompt, generated - 1, load_start, load_end, start, end, first, first);
  return held[12345] == 1 ? 0 : 2;
}
