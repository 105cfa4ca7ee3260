// pocketphi.h and the tokenizer for Kotlin: the functions of org.pocketphi.core.Native.
//
// Strings travel as UTF-8 in byte arrays, for JNI's own spell emoji otherwise. Nothing of C++ is thrown into the virtual
// machine: Native.fail makes an exception of a status. An exception of a callback ends the call and is left pending, so
// it comes out of it; no other callback runs meanwhile.
#include <jni.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "pocketphi.h"
#include "pocketphi_tokenizer.h"

namespace {

// Kotlin keeps addresses as numbers.
template <class Type>
Type* at(jlong handle) {
  return reinterpret_cast<Type*>(handle);  // NOLINT(performance-no-int-to-ptr)
}
pocketphi_engine* engine_of(jlong handle) { return at<pocketphi_engine>(handle); }
pocketphi_tokenizer* tokenizer_of(jlong handle) { return at<pocketphi_tokenizer>(handle); }

// NULL, and an exception pending, where memory has run out.
jbyteArray bytes(JNIEnv* env, const char* text, size_t length) {
  const auto size = static_cast<jsize>(length);
  jbyteArray made = env->NewByteArray(size);
  if (made != nullptr) env->SetByteArrayRegion(made, 0, size, reinterpret_cast<const jbyte*>(text));
  return made;
}

std::string text_of(JNIEnv* env, jbyteArray from) {
  std::string text(static_cast<size_t>(env->GetArrayLength(from)), '\0');
  env->GetByteArrayRegion(from, 0, static_cast<jsize>(text.size()), reinterpret_cast<jbyte*>(text.data()));
  return text;
}

std::vector<int64_t> ids_of(JNIEnv* env, jlongArray from) {
  std::vector<int64_t> ids(static_cast<size_t>(env->GetArrayLength(from)));
  static_assert(sizeof(jlong) == sizeof(int64_t));
  env->GetLongArrayRegion(from, 0, static_cast<jsize>(ids.size()), reinterpret_cast<jlong*>(ids.data()));
  return ids;
}

jlongArray array_of(JNIEnv* env, const std::vector<int64_t>& ids) {
  jlongArray made = env->NewLongArray(static_cast<jsize>(ids.size()));
  if (made != nullptr)
    env->SetLongArrayRegion(made, 0, static_cast<jsize>(ids.size()), reinterpret_cast<const jlong*>(ids.data()));
  return made;
}

// Does `work`, which fills `error` where it does not return POCKETPHI_OK; then throws, unless a callback has thrown.
template <class Work>
void call(JNIEnv* env, jclass native, Work work) {
  pocketphi_error error = {};
  pocketphi_status status = POCKETPHI_FAILED;
  try {
    status = work(&error);
  } catch (const std::exception& problem) {
    std::strncpy(error.text, problem.what(), sizeof error.text - 1);
  }
  if (status == POCKETPHI_OK || env->ExceptionCheck()) return;
  const jmethodID fail = env->GetStaticMethodID(native, "fail", "(I[B)V");
  if (fail == nullptr) return;
  jbyteArray sentence = bytes(env, error.text, std::strlen(error.text));
  if (sentence != nullptr) env->CallStaticVoidMethod(native, fail, static_cast<jint>(status), sentence);
}

pocketphi_status refused(pocketphi_error* error, const char* sentence) {
  std::strncpy(error->text, sentence, sizeof error->text - 1);
  return POCKETPHI_BAD_INPUT;
}

// A Native.Listener, called on the thread that called.
class Listener {
 public:
  Listener(JNIEnv* env, jobject of, pocketphi_engine* engine, pocketphi_tokenizer* tokenizer)
      : env_(env), of_(of), engine_(engine), tokenizer_(tokenizer) {
    const jclass type = env->GetObjectClass(of);
    progress_ = env->GetMethodID(type, "progress", "(JJ)V");
    if (progress_ != nullptr) token_ = env->GetMethodID(type, "token", "(JD)V");
    if (token_ != nullptr) part_ = env->GetMethodID(type, "part", "(JJ)V");
    if (part_ != nullptr) text_ = env->GetMethodID(type, "text", "([B)V");
  }
  bool ready() const { return text_ != nullptr; }

  static void progress(void* self, uint64_t bytes, uint64_t of) {
    auto& to = *static_cast<Listener*>(self);
    to.tell([&] { to.env_->CallVoidMethod(to.of_, to.progress_, static_cast<jlong>(bytes), static_cast<jlong>(of)); });
  }
  static void part(void* self, int64_t done, int64_t of) {
    auto& to = *static_cast<Listener*>(self);
    to.tell([&] { to.env_->CallVoidMethod(to.of_, to.part_, static_cast<jlong>(done), static_cast<jlong>(of)); });
  }
  static void token(void* self, int64_t id, double ms) {
    auto& to = *static_cast<Listener*>(self);
    to.tell([&] { to.env_->CallVoidMethod(to.of_, to.token_, static_cast<jlong>(id), ms); });
  }
  static void text(void* self, const char* text, size_t length) {
    auto& to = *static_cast<Listener*>(self);
    to.tell([&] {
      jbyteArray piece = bytes(to.env_, text, length);
      if (piece == nullptr) return;
      to.env_->CallVoidMethod(to.of_, to.text_, piece);
      to.env_->DeleteLocalRef(piece);  // an answer may have more pieces than JNI has room for
    });
  }
  static size_t decode(void* self, const int64_t* ids, size_t count, char* out, size_t capacity) {
    return pocketphi_tokenizer_decode(static_cast<Listener*>(self)->tokenizer_, ids, count, out, capacity);
  }

 private:
  template <class Telling>
  void tell(Telling telling) {
    if (env_->ExceptionCheck()) return;
    telling();
    if (env_->ExceptionCheck()) pocketphi_stop(engine_);
  }
  JNIEnv* env_;
  jobject of_;
  pocketphi_engine* engine_;
  pocketphi_tokenizer* tokenizer_;
  jmethodID progress_ = nullptr, token_ = nullptr, part_ = nullptr, text_ = nullptr;
};

void put(JNIEnv* env, jdoubleArray into, const std::vector<double>& numbers) {
  env->SetDoubleArrayRegion(into, 0, static_cast<jsize>(numbers.size()), numbers.data());
}

template <class... Numbers>
std::vector<double> doubles(Numbers... numbers) {
  return {static_cast<double>(numbers)...};
}

// Pixels or samples of Kotlin's, read where they lie or in a copy of the machine's, and never written.
template <class Array, class Element, Element* (JNIEnv::*get)(Array, jboolean*), void (JNIEnv::*give)(Array, Element*, jint)>
class Elements {
 public:
  Elements(JNIEnv* env, Array of) : env_(env), of_(of), at_((env->*get)(of, nullptr)) {}
  ~Elements() {
    if (at_ != nullptr) (env_->*give)(of_, at_, JNI_ABORT);
  }
  Elements(const Elements&) = delete;
  Elements& operator=(const Elements&) = delete;
  const Element* at() const { return at_; }  // NULL, and an exception pending, where memory has run out
  size_t size() const { return static_cast<size_t>(env_->GetArrayLength(of_)); }

 private:
  JNIEnv* env_;
  Array of_;
  Element* at_;
};
using Bytes = Elements<jbyteArray, jbyte, &JNIEnv::GetByteArrayElements, &JNIEnv::ReleaseByteArrayElements>;
using Floats = Elements<jfloatArray, jfloat, &JNIEnv::GetFloatArrayElements, &JNIEnv::ReleaseFloatArrayElements>;

// Encodes by `work`, which is given where to put what was encoded, and tells `of` before each part; writes Native.ENCODED
// numbers and returns the first id, which no double can hold.
template <class Work>
jlong encoded(JNIEnv* env, jclass native, jlong engine, jdoubleArray numbers, jobject of, Work work) {
  Listener listener(env, of, engine_of(engine), nullptr);
  if (!listener.ready()) return 0;
  pocketphi_encoded made = {};
  call(env, native, [&](pocketphi_error* error) {
    const auto status = pocketphi_watch_encoding(engine_of(engine), Listener::part, &listener, error);
    return status == POCKETPHI_OK ? work(&made, error) : status;
  });
  pocketphi_watch_encoding(engine_of(engine), nullptr, nullptr, nullptr);
  if (env->ExceptionCheck()) return 0;
  put(env, numbers, doubles(made.count, made.parts, made.reused ? 1 : 0, made.prepare_ms, made.encode_ms));
  return made.first_id;
}

}  // namespace

#define NATIVE(type, name, ...) \
  extern "C" JNIEXPORT type JNICALL Java_org_pocketphi_core_Native_##name(JNIEnv* env, jclass native, ##__VA_ARGS__)

NATIVE(jlong, create) {
  (void)env, (void)native;
  return reinterpret_cast<jlong>(pocketphi_create());
}

NATIVE(void, close, jlong engine) {
  call(env, native, [&](pocketphi_error* error) { return pocketphi_close(engine_of(engine), error); });
}

NATIVE(void, stop, jlong engine) {
  (void)env, (void)native;
  pocketphi_stop(engine_of(engine));
}

// Writes Native.LOADED numbers; returns the note on packed weights.
NATIVE(jbyteArray, load, jlong engine, jbyteArray model, jbyteArray cache_dir, jint threads, jint prefill_chunk,
       jdoubleArray numbers, jobject of) {
  Listener listener(env, of, engine_of(engine), nullptr);
  if (!listener.ready()) return nullptr;
  pocketphi_load_report report = {};
  call(env, native, [&](pocketphi_error* error) {
    const std::string path = text_of(env, model), folder = cache_dir == nullptr ? "" : text_of(env, cache_dir);
    const pocketphi_load_options options = {
        path.c_str(), cache_dir == nullptr ? nullptr : folder.c_str(), threads, prefill_chunk, Listener::progress, &listener};
    return pocketphi_load(engine_of(engine), &options, &report, error);
  });
  if (env->ExceptionCheck()) return nullptr;
  put(env, numbers, doubles(report.packing, report.context_length, report.prefill_chunk, report.logits_positions,
                            report.threads, report.load_ms, report.pack_ms, report.packed_bytes,
                            report.takes_pictures ? 1 : 0, report.takes_sound ? 1 : 0, report.sound_rate));
  return bytes(env, report.packed_note, std::strlen(report.packed_note));
}

NATIVE(jlong, picture, jlong engine, jbyteArray rgb, jint width, jint height, jdoubleArray numbers,
       jobject of) {
  return encoded(env, native, engine, numbers, of, [&](pocketphi_encoded* made, pocketphi_error* error) {
    const Bytes pixels(env, rgb);
    const size_t columns = static_cast<size_t>(width), rows = static_cast<size_t>(height);
    if (pixels.at() == nullptr) return POCKETPHI_FAILED;
    if (width < 1 || height < 1 || pixels.size() / 3 / columns < rows)
      return refused(error, "the picture has fewer bytes than its width and height need");
    return pocketphi_picture(
        engine_of(engine), reinterpret_cast<const uint8_t*>(pixels.at()), columns, rows, made, error);
  });
}

// The mode as pocketphi_mode counts.
NATIVE(jlong, sound, jlong engine, jfloatArray samples, jint rate, jint mode, jdoubleArray numbers, jobject of) {
  return encoded(env, native, engine, numbers, of, [&](pocketphi_encoded* made, pocketphi_error* error) {
    const Floats given(env, samples);
    if (given.at() == nullptr) return POCKETPHI_FAILED;
    return pocketphi_sound(
        engine_of(engine), given.at(), given.size(), rate, static_cast<pocketphi_mode>(mode), made, error);
  });
}

NATIVE(jlong, pictureTokens, jlong engine, jint width, jint height) {
  int64_t count = 0;
  call(env, native, [&](pocketphi_error* error) {
    const size_t columns = width < 0 ? 0 : static_cast<size_t>(width), rows = height < 0 ? 0 : static_cast<size_t>(height);
    return pocketphi_picture_tokens(engine_of(engine), columns, rows, &count, error);
  });
  return count;
}

NATIVE(jlong, soundTokens, jlong engine, jint samples, jint rate) {
  int64_t count = 0;
  call(env, native, [&](pocketphi_error* error) {
    return pocketphi_sound_tokens(engine_of(engine), samples < 0 ? 0 : static_cast<size_t>(samples), rate, &count, error);
  });
  return count;
}

NATIVE(void, forgetMedia, jlong engine) {
  call(env, native, [&](pocketphi_error* error) { return pocketphi_forget_media(engine_of(engine), error); });
}

// Writes Native.ANSWERED numbers.
NATIVE(void, generate, jlong engine, jlong tokenizer, jlongArray prompt, jlong max_new_tokens, jfloat temperature, jint top_k,
       jfloat top_p, jlong seed, jint draft_tokens, jdoubleArray numbers, jobject of) {
  Listener listener(env, of, engine_of(engine), tokenizer_of(tokenizer));
  if (!listener.ready()) return;
  pocketphi_result result = {};
  call(env, native, [&](pocketphi_error* error) {
    const auto ids = ids_of(env, prompt);
    pocketphi_generation how = {};
    how.max_new_tokens = max_new_tokens, how.temperature = temperature, how.top_k = top_k, how.top_p = top_p;
    how.seed = static_cast<uint64_t>(seed), how.draft_tokens = draft_tokens;
    how.on_token = Listener::token, how.on_text = Listener::text, how.context = &listener;
    how.decode = tokenizer == 0 ? nullptr : Listener::decode;
    return pocketphi_generate(engine_of(engine), ids.data(), ids.size(), &how, &result, error);
  });
  if (env->ExceptionCheck()) return;
  put(env, numbers, doubles(result.end, result.new_tokens, result.prefill_ms, result.first_token_ms, result.decode_ms,
                            result.drafted_tokens, result.accepted_tokens));
}

NATIVE(jlongArray, tokens, jlong engine) {
  std::vector<int64_t> ids;
  call(env, native, [&](pocketphi_error* error) {
    size_t count = 0;
    const auto status = pocketphi_tokens(engine_of(engine), nullptr, 0, &count, error);
    if (status != POCKETPHI_OK) return status;
    ids.resize(count);
    return pocketphi_tokens(engine_of(engine), ids.data(), ids.size(), &count, error);
  });
  return env->ExceptionCheck() ? nullptr : array_of(env, ids);
}

NATIVE(void, rewind, jlong engine, jlong count) {
  call(env, native, [&](pocketphi_error* error) {
    return pocketphi_rewind(engine_of(engine), static_cast<size_t>(count), error);
  });
}

NATIVE(jlong, loadTokenizer, jbyteArray path) {
  pocketphi_tokenizer* made = nullptr;
  call(env, native, [&](pocketphi_error* error) {
    made = pocketphi_tokenizer_load(text_of(env, path).c_str(), error);
    return made == nullptr ? POCKETPHI_BAD_INPUT : POCKETPHI_OK;
  });
  return reinterpret_cast<jlong>(made);
}

NATIVE(void, freeTokenizer, jlong tokenizer) {
  (void)env, (void)native;
  pocketphi_tokenizer_free(tokenizer_of(tokenizer));
}

NATIVE(jlongArray, encode, jlong tokenizer, jbyteArray text) {
  std::vector<int64_t> ids;
  call(env, native, [&](pocketphi_error* error) {
    const std::string given = text_of(env, text);
    size_t count = given.size() + 1;
    pocketphi_status status = POCKETPHI_OK;
    do {
      ids.resize(count);
      status = pocketphi_tokenizer_encode(
          tokenizer_of(tokenizer), given.data(), given.size(), 0, ids.data(), ids.size(), &count, error);
    } while (status == POCKETPHI_OK && count > ids.size());
    ids.resize(status == POCKETPHI_OK ? count : 0);
    return status;
  });
  return env->ExceptionCheck() ? nullptr : array_of(env, ids);
}
