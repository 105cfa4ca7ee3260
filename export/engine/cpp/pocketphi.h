/* The engine of both apps: a `.pte` made by Pocketphi, token ids in, token ids and text out.
 *
 * Plain C, for Swift to import, for Kotlin by way of JNI and for Python's ctypes. It knows nothing of screens, chat
 * templates or where files come from; the caller brings the tokenizer as a function.
 *
 * Threads: one engine does one thing at a time and refuses a second call with POCKETPHI_BUSY; pocketphi_stop and
 * pocketphi_close may come from any thread meanwhile. Different engines may run side by side. Callbacks run on the
 * thread that called and must not call the engine, except pocketphi_stop.
 * Strings are UTF-8 and end with a zero; those given are not kept after the call.
 */
#ifndef POCKETPHI_H
#define POCKETPHI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pocketphi_engine pocketphi_engine;

typedef enum {
  POCKETPHI_OK = 0,
  POCKETPHI_BAD_INPUT = 1, /* something given cannot be used */
  POCKETPHI_STOPPED = 2,   /* by pocketphi_stop or pocketphi_close */
  POCKETPHI_BUSY = 3,      /* another call is running, or the engine is being closed */
  POCKETPHI_FAILED = 4,    /* the runtime or the system failed */
} pocketphi_status;

/* Filled with one sentence by a call that does not return POCKETPHI_OK; may be NULL everywhere. */
typedef struct {
  char text[1024];
} pocketphi_error;

/* ---- life */

/* NULL where memory has run out. */
pocketphi_engine* pocketphi_create(void);

/* Stops what is running, waits until it has left, and frees everything: the handle must not be used again.
 * POCKETPHI_BUSY, and nothing happens, from within a callback of the engine. NULL is fine. */
pocketphi_status pocketphi_close(pocketphi_engine* engine, pocketphi_error* error);

/* Ends the running load (at the next weight), encoding (at the next part) or answer (at the next token or chunk of the
 * prompt). Without a running call it does nothing. */
void pocketphi_stop(pocketphi_engine* engine);

/* ---- load */

typedef enum {
  POCKETPHI_UNPACKED = 0, /* weights were packed into private memory; `packed_note` says why */
  POCKETPHI_PACKED = 1,   /* packed now, into the file that is mapped (a cold load) */
  POCKETPHI_REUSED = 2,   /* the file of an earlier load is mapped (a warm load) */
} pocketphi_packing;

typedef struct {
  const char* model; /* path of the `.pte` */
  /* Where XNNPACK's packed weights are kept between starts; made if its parent exists. It should be the app's alone and
   * kept out of backups; only files named *.packed, *.check and *.partial are ever deleted there. NULL: nowhere. */
  const char* cache_dir;
  int32_t threads;       /* of the process: 0 is one for each performance core; fixed while any engine is loaded */
  int32_t prefill_chunk; /* tokens fed at once: 0 is as many as the file allows */
  void (*on_progress)(void* context, uint64_t bytes, uint64_t of); /* of the `.pte`; may be NULL */
  void* context;
} pocketphi_load_options;

typedef struct {
  int64_t context_length; /* tokens */
  int64_t prefill_chunk;  /* tokens */
  int64_t vocab_size;
  int64_t logits_positions; /* of how many last tokens a step gives logits: with more than 1 drafts can be checked */
  int32_t packing; /* pocketphi_packing */
  int32_t threads;
  double load_ms;        /* all of it */
  double pack_ms;        /* of which packing, in a cold load */
  uint64_t packed_bytes; /* length of the file of packed weights */
  uint64_t planned_bytes; /* address space of KV cache and activations, of which only what is used takes memory */
  uint64_t private_bytes; /* growth of anonymous memory by the load */
  bool takes_pictures;
  bool takes_sound;
  int32_t sound_rate;     /* samples a second, 0 where the file takes no sound */
  char packed_note[512];
} pocketphi_load_report;

/* Loads a model, in place of the one loaded before. `report` may be NULL. After a failure nothing is loaded. */
pocketphi_status pocketphi_load(
    pocketphi_engine* engine, const pocketphi_load_options* options, pocketphi_load_report* report, pocketphi_error* error);

/* ---- pictures and sound, with a multimodal file
 *
 * What is encoded stands in a prompt as media ids: `count` of them, from first_id down, all below zero. The same pixels
 * or samples have the same ids in every engine that has loaded the same file, so that a session that holds them is taken
 * up as one of text is. A prompt with a picture is answered with the adapter for pictures, one with sound alone with that
 * for sound, any other with none; where that changes from one prompt to the next, the session is fed anew. The ids of
 * one prompt that are not in the session must have been encoded since the load. */

typedef enum {
  POCKETPHI_TEXT = 0,
  POCKETPHI_VISION = 1, /* pictures, with or without sound */
  POCKETPHI_SPEECH = 2, /* sound alone */
} pocketphi_mode;

typedef struct {
  int64_t first_id;
  int64_t count;     /* tokens */
  int64_t parts;     /* encoded: crops of a picture, pieces of a sound */
  bool reused;       /* it was encoded before, and its rows are still here */
  double prepare_ms; /* scaling and cutting, or the spectrogram */
  double encode_ms;
} pocketphi_encoded;

/* Has `on_part` called before each part that is encoded: `done` of all `of` of them, crops of a picture, or pieces and
 * windows of a sound. It may call pocketphi_stop. Stays so until called again; NULL: nobody is told. */
pocketphi_status pocketphi_watch_encoding(
    pocketphi_engine* engine, void (*on_part)(void* context, int64_t done, int64_t of), void* context,
    pocketphi_error* error);

/* Encodes a picture of `height` rows of `width` pixels, three bytes (RGB) each, upright. POCKETPHI_BAD_INPUT where the
 * file takes no pictures, or the picture is too narrow. */
pocketphi_status pocketphi_picture(
    pocketphi_engine* engine, const uint8_t* rgb, size_t width, size_t height, pocketphi_encoded* encoded,
    pocketphi_error* error);

/* Encodes a sound of one channel, samples -1 to 1, at the file's rate (sound_rate) or half of it, for prompts of `mode`:
 * beside pictures it is projected otherwise. */
pocketphi_status pocketphi_sound(
    pocketphi_engine* engine, const float* samples, size_t count, int32_t rate, pocketphi_mode mode,
    pocketphi_encoded* encoded, pocketphi_error* error);

/* How many tokens a picture of this size, or so many samples, will be; nothing is encoded. */
pocketphi_status pocketphi_picture_tokens(
    pocketphi_engine* engine, size_t width, size_t height, int64_t* count, pocketphi_error* error);
pocketphi_status pocketphi_sound_tokens(
    pocketphi_engine* engine, size_t samples, int32_t rate, int64_t* count, pocketphi_error* error);

/* Frees the rows of what was encoded, and encoders whose weights are in private memory, which otherwise stay: from a file
 * of packed weights they are mapped anew each time. What a session has been fed stays good. Without this call rows of as
 * many tokens as the context has are kept, and those longest unused make room. */
pocketphi_status pocketphi_forget_media(pocketphi_engine* engine, pocketphi_error* error);

/* ---- answer */

typedef enum {
  POCKETPHI_END_TOKEN = 0,   /* a stop id of the file or of the caller */
  POCKETPHI_END_TEXT = 1,    /* a stop string */
  POCKETPHI_END_LIMIT = 2,   /* max_new_tokens */
  POCKETPHI_END_CONTEXT = 3, /* prompt and answer fill the context */
  POCKETPHI_END_STOPPED = 4, /* pocketphi_stop */
} pocketphi_end;

typedef struct {
  int64_t max_new_tokens;   /* 0: until it ends or the context is full */
  float temperature;        /* 0 always takes the likeliest token (the first of equals), whatever the next three say */
  int32_t top_k;            /* only the k likeliest; 0: all */
  float top_p;              /* only the likeliest that have this much probability together; 0 or 1: all */
  float min_p;              /* only those with this part of the likeliest one's probability; 0: all */
  float repetition_penalty; /* > 1 makes tokens of prompt and answer less likely (CTRL's rule); 0 or 1: none */
  uint64_t seed;            /* equal seeds and logits give equal tokens on every platform */
  /* Prompt-lookup speculative decoding: at most so many tokens are guessed, from n-grams of prompt and answer, and
   * checked in one step; a guess is kept only where it is the token that would have been chosen. 0: none. Cut to what
   * the file can check (logits_positions - 1). */
  int32_t draft_tokens;
  bool ignore_eos;          /* go on after the file's own stop ids, to measure */
  const int64_t* stop_ids;  /* besides the file's own */
  size_t stop_id_count;
  const char* const* stop_texts; /* end the answer and are left out of the text; need `decode` */
  size_t stop_text_count;

  /* Text of `count` ids into `out` (no zero needed); returns its length in bytes, and is called again with more room
   * where that is above `capacity`. A character whose bytes are not all there may come as U+FFFD or as those bytes.
   * NULL: ids only. */
  size_t (*decode)(void* context, const int64_t* ids, size_t count, char* out, size_t capacity);
  void (*on_token)(void* context, int64_t id, double ms); /* ms since the token before, or the prompt */
  void (*on_text)(void* context, const char* text, size_t length); /* whole characters */
  void* context;
} pocketphi_generation;

typedef struct {
  int32_t end;            /* pocketphi_end */
  int64_t prompt_tokens;
  int64_t reused_tokens;  /* of the prompt, which the session held already */
  int64_t new_tokens;     /* without the one that ended the answer */
  int64_t steps;          /* of decoding, each of one token and its drafts */
  int64_t drafted_tokens; /* guessed */
  int64_t accepted_tokens; /* of them, the right ones */
  double prefill_ms;      /* of the prompt's other tokens */
  double first_token_ms;  /* prefill and the choice of the first token */
  double decode_ms;       /* from the first token on */
} pocketphi_result;

/* Answers a prompt. The engine remembers the tokens it has been fed: only what follows their common prefix with `ids`
 * is computed. POCKETPHI_BAD_INPUT, before anything is computed, where the prompt is empty, has an id outside the
 * vocabulary or leaves no room in the context. `result` may be NULL. */
pocketphi_status pocketphi_generate(
    pocketphi_engine* engine, const int64_t* ids, size_t count, const pocketphi_generation* how, pocketphi_result* result,
    pocketphi_error* error);

/* Feeds tokens as pocketphi_generate does and gives the float32 logits of the last one; `logits` has room for
 * vocab_size, or is NULL. */
pocketphi_status pocketphi_feed(
    pocketphi_engine* engine, const int64_t* ids, size_t count, float* logits, pocketphi_error* error);

/* As pocketphi_feed, but with the float32 logits [rows, vocab_size] of each of the last `rows` tokens, which are fed anew;
 * at most logits_positions of them at once, since a step gives no more. */
pocketphi_status pocketphi_feed_rows(
    pocketphi_engine* engine, const int64_t* ids, size_t count, size_t rows, float* logits, pocketphi_error* error);

/* ---- the session: tokens fed and their KV cache */

/* How many tokens the session holds; writes the first `capacity` of them to `ids`, which may be NULL with 0. */
pocketphi_status pocketphi_tokens(
    pocketphi_engine* engine, int64_t* ids, size_t capacity, size_t* count, pocketphi_error* error);

/* Forgets all tokens after the first `count`. */
pocketphi_status pocketphi_rewind(pocketphi_engine* engine, size_t count, pocketphi_error* error);

/* Forgets the session and gives its memory back to the system; the model stays loaded. */
pocketphi_status pocketphi_release(pocketphi_engine* engine, pocketphi_error* error);

/* Writes the session to a file, whole or not at all, over nothing but a session saved before. */
pocketphi_status pocketphi_save(pocketphi_engine* engine, const char* path, pocketphi_error* error);

/* Takes up a session saved with the same `.pte`. After a refusal the session is as before. */
pocketphi_status pocketphi_restore(pocketphi_engine* engine, const char* path, pocketphi_error* error);

/* ---- memory of the process, in bytes; what the system does not tell is 0 */

typedef struct {
  uint64_t anonymous; /* resident and private: what Linux's low-memory killers count */
  uint64_t file;      /* resident and backed by files */
  uint64_t swapped;
  uint64_t dirty;     /* private and dirty, which costs a walk through all pages: not while measuring time */
  uint64_t footprint; /* what iOS counts */
} pocketphi_memory_use;

void pocketphi_memory(pocketphi_memory_use* use);

#ifdef __cplusplus
}
#endif
#endif
