/* The tokenizer beside a model, for callers of pocketphi.h: text to ids as ExecuTorch's runner does it, ids to text.
 *
 * Apart from the engine, which compiles without it: this stands on the C++ library `tokenizers` that ExecuTorch's LLM
 * runner carries (in the JNI library of its AAR, in Apple's executorch_llm). One tokenizer is for one thread at a time.
 */
#ifndef POCKETPHI_TOKENIZER_H
#define POCKETPHI_TOKENIZER_H

#include "../pocketphi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pocketphi_tokenizer pocketphi_tokenizer;

/* Reads a tokenizer.json, a SentencePiece model or a tiktoken file, told apart as the runner does. NULL, with one
 * sentence, where it is none of them. `error` may be NULL everywhere. */
pocketphi_tokenizer* pocketphi_tokenizer_load(const char* path, pocketphi_error* error);

void pocketphi_tokenizer_free(pocketphi_tokenizer* tokenizer); /* NULL is fine */

/* Ids of `length` bytes of UTF-8: the first `capacity` go to `ids`, and `count` is how many there are. Special tokens
 * spelled in the text become their ids (SentencePiece: never). `num_bos` is the runner's: above 0 a tokenizer.json adds
 * what its post_processor says, the other kinds put bos in front so many times. Prompts of a chat template take 0. */
pocketphi_status pocketphi_tokenizer_encode(
    pocketphi_tokenizer* tokenizer, const char* text, size_t length, int8_t num_bos, int64_t* ids, size_t capacity,
    size_t* count, pocketphi_error* error);

/* `decode` of pocketphi_generation, but for its first argument. Special tokens come out as their text (SentencePiece's
 * as nothing), unknown ids as nothing, half a character as its bytes. */
size_t pocketphi_tokenizer_decode(
    pocketphi_tokenizer* tokenizer, const int64_t* ids, size_t count, char* out, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
